// Sixteen lanes, whatever the processor has: one 512-bit register, two of 256 bits, or four of 128 bits.
// Lane l of every operation is exactly the IEEE operation on lane l, so all versions give the same bits.
#pragma once
#include <string.h>

#include "isa.h"
#ifdef CC_X86
#include <immintrin.h>
#endif

namespace {

#if CC_ISA == 2
struct F16 {
    __m512 v;
};
struct I16 {
    __m512i v;
};
struct Mask {
    __mmask16 v;
};

CC_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
CC_INLINE F16 load(const float* p, int n) { return {_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)}; }
CC_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
CC_INLINE void store(float* p, F16 a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a.v); }
CC_INLINE F16 splat(float a) { return {_mm512_set1_ps(a)}; }
CC_INLINE I16 splat(int32_t a) { return {_mm512_set1_epi32(a)}; }
CC_INLINE F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
CC_INLINE F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
CC_INLINE F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
CC_INLINE I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
CC_INLINE I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
CC_INLINE I16 operator&(I16 a, I16 b) { return {_mm512_and_si512(a.v, b.v)}; }
CC_INLINE I16 operator|(I16 a, I16 b) { return {_mm512_or_si512(a.v, b.v)}; }
CC_INLINE I16 operator^(I16 a, I16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int n> CC_INLINE I16 shl(I16 a) { return {_mm512_slli_epi32(a.v, n)}; }
template <int n> CC_INLINE I16 shr(I16 a) { return {_mm512_srli_epi32(a.v, n)}; }
CC_INLINE I16 max(I16 a, I16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
CC_INLINE I16 min(I16 a, I16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
CC_INLINE I16 bits(F16 a) { return {_mm512_castps_si512(a.v)}; }
CC_INLINE F16 floats(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
CC_INLINE F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
CC_INLINE I16 round_int(F16 a) {  // half to even
    return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
CC_INLINE I16 floor_int(F16 a) { return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
CC_INLINE Mask lt(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
CC_INLINE Mask lt(I16 a, I16 b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
CC_INLINE F16 select(Mask m, F16 a, F16 b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }  // m ? a : b
CC_INLINE uint32_t to_bits(Mask m) { return m.v; }                                            // lane l is bit l
CC_INLINE I16 load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
CC_INLINE I16 load_u16(const void* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
CC_INLINE void store_u16(void* p, I16 a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a.v)); }
CC_INLINE void store(int32_t* p, I16 a) { _mm512_storeu_si512(p, a.v); }

#else
// Pieces of the widest native vector: named members, because compilers keep those in registers and arrays in memory.
// The GNU vector extension gives + - * & | ^ and comparisons on all processors.
#if CC_ISA == 1
#define CC_PIECE 8
#define CC_PIECES(T) T p0, p1
#else
#define CC_PIECE 4
#define CC_PIECES(T) T p0, p1, p2, p3
#endif
typedef float vf __attribute__((vector_size(CC_PIECE * 4)));
typedef int32_t vi __attribute__((vector_size(CC_PIECE * 4)));
typedef uint32_t vu __attribute__((vector_size(CC_PIECE * 4)));
struct F16 {
    CC_PIECES(vf);
};
struct I16 {
    CC_PIECES(vi);
};
struct Mask {
    CC_PIECES(vi);
};

// f on each piece of the arguments.
template <class R, class F, class... A> CC_INLINE R map(F f, A... a) {
#if CC_ISA == 1
    return {f(a.p0...), f(a.p1...)};
#else
    return {f(a.p0...), f(a.p1...), f(a.p2...), f(a.p3...)};
#endif
}
#define CC_FN(...) [=](__VA_ARGS__) __attribute__((always_inline))

// Loads and stores by piece (a 64-byte memcpy would go through the stack), at any alignment. Not through a template:
// a template argument loses the attribute.
typedef vf vf_at __attribute__((aligned(1), may_alias));
typedef vi vi_at __attribute__((aligned(1), may_alias));
#if CC_ISA == 1
#define CC_LOAD(q) {(q)[0], (q)[1]}
#define CC_STORE(q, a) (q)[0] = a.p0, (q)[1] = a.p1
#else
#define CC_LOAD(q) {(q)[0], (q)[1], (q)[2], (q)[3]}
#define CC_STORE(q, a) (q)[0] = a.p0, (q)[1] = a.p1, (q)[2] = a.p2, (q)[3] = a.p3
#endif
CC_INLINE F16 load(const float* p) {
    const vf_at* q = (const vf_at*)p;
    return CC_LOAD(q);
}
CC_INLINE void store(float* p, F16 a) {
    vf_at* q = (vf_at*)p;
    CC_STORE(q, a);
}
CC_INLINE void store(int32_t* p, I16 a) {
    vi_at* q = (vi_at*)p;
    CC_STORE(q, a);
}
CC_INLINE F16 load(const float* p, int n) {
    float t[16] = {};
    memcpy(t, p, 4 * (size_t)n);
    return load(t);
}
CC_INLINE void store(float* p, F16 a, int n) {
    float t[16];
    store(t, a);
    memcpy(p, t, 4 * (size_t)n);
}
CC_INLINE F16 splat(float a) {
    return map<F16>(CC_FN(vf z) { return z + a; }, F16{});
}
CC_INLINE I16 splat(int32_t a) {
    return map<I16>(CC_FN(vi z) { return z + a; }, I16{});
}
CC_INLINE F16 operator+(F16 a, F16 b) {
    return map<F16>(CC_FN(vf x, vf y) { return x + y; }, a, b);
}
CC_INLINE F16 operator-(F16 a, F16 b) {
    return map<F16>(CC_FN(vf x, vf y) { return x - y; }, a, b);
}
CC_INLINE F16 operator*(F16 a, F16 b) {
    return map<F16>(CC_FN(vf x, vf y) { return x * y; }, a, b);
}
CC_INLINE I16 operator+(I16 a, I16 b) {
    return map<I16>(CC_FN(vi x, vi y) { return (vi)((vu)x + (vu)y); }, a, b);
}
CC_INLINE I16 operator-(I16 a, I16 b) {
    return map<I16>(CC_FN(vi x, vi y) { return (vi)((vu)x - (vu)y); }, a, b);
}
CC_INLINE I16 operator&(I16 a, I16 b) {
    return map<I16>(CC_FN(vi x, vi y) { return x & y; }, a, b);
}
CC_INLINE I16 operator|(I16 a, I16 b) {
    return map<I16>(CC_FN(vi x, vi y) { return x | y; }, a, b);
}
CC_INLINE I16 operator^(I16 a, I16 b) {
    return map<I16>(CC_FN(vi x, vi y) { return x ^ y; }, a, b);
}
template <int n> CC_INLINE I16 shl(I16 a) {
    return map<I16>(CC_FN(vi x) { return (vi)((vu)x << n); }, a);
}
template <int n> CC_INLINE I16 shr(I16 a) {
    return map<I16>(CC_FN(vi x) { return (vi)((vu)x >> n); }, a);
}
CC_INLINE I16 bits(F16 a) {
    return map<I16>(CC_FN(vf x) { return (vi)x; }, a);
}
CC_INLINE F16 floats(I16 a) {
    return map<F16>(CC_FN(vi x) { return (vf)x; }, a);
}
CC_INLINE F16 to_float(I16 a) {
    return map<F16>(CC_FN(vi x) { return __builtin_convertvector(x, vf); }, a);
}
CC_INLINE Mask lt(F16 a, F16 b) {
    return map<Mask>(CC_FN(vf x, vf y) { return (vi)(x < y); }, a, b);
}
CC_INLINE Mask lt(I16 a, I16 b) {
    return map<Mask>(CC_FN(vi x, vi y) { return (vi)(x < y); }, a, b);
}

#if CC_ISA == 1
CC_INLINE I16 max(I16 a, I16 b) {
    return map<I16>(CC_FN(vi x, vi y) { return (vi)_mm256_max_epi32((__m256i)x, (__m256i)y); }, a, b);
}
CC_INLINE I16 min(I16 a, I16 b) {
    return map<I16>(CC_FN(vi x, vi y) { return (vi)_mm256_min_epi32((__m256i)x, (__m256i)y); }, a, b);
}
CC_INLINE F16 select(Mask m, F16 a, F16 b) {
    return map<F16>(CC_FN(vi k, vf x, vf y) { return _mm256_blendv_ps(y, x, (vf)k); }, m, a, b);
}
CC_INLINE I16 round_int(F16 a) {
    return map<I16>(CC_FN(vf x) { return (vi)_mm256_cvtps_epi32(x); }, a);
}
CC_INLINE I16 floor_int(F16 a) {
    return map<I16>(CC_FN(vf x) { return (vi)_mm256_cvttps_epi32(_mm256_floor_ps(x)); }, a);
}
CC_INLINE uint32_t to_bits(Mask m) {
    return (uint32_t)_mm256_movemask_ps((vf)m.p0) | (uint32_t)_mm256_movemask_ps((vf)m.p1) << 8;
}
CC_INLINE I16 widen_u8(__m128i v) {
    return {(vi)_mm256_cvtepu8_epi32(v), (vi)_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
CC_INLINE I16 load_u8(const uint8_t* p) { return widen_u8(_mm_loadu_si128((const __m128i*)p)); }
CC_INLINE I16 load_u16(const void* p) {
    const __m128i* q = (const __m128i*)p;
    return {(vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
CC_INLINE void store_u16(void* p, I16 a) {  // lanes must lie in 0..65535
    __m256i t = _mm256_packus_epi32((__m256i)a.p0, (__m256i)a.p1);
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(t, 0xd8));
}
#else
CC_INLINE F16 select(Mask m, F16 a, F16 b) {
    return map<F16>(CC_FN(vi k, vf x, vf y) { return (vf)((k & (vi)x) | (~k & (vi)y)); }, m, a, b);
}
CC_INLINE I16 max(I16 a, I16 b) { return bits(select(lt(a, b), floats(b), floats(a))); }
CC_INLINE I16 min(I16 a, I16 b) { return bits(select(lt(a, b), floats(a), floats(b))); }
#ifdef CC_X86
CC_INLINE I16 round_int(F16 a) {
    return map<I16>(CC_FN(vf x) { return (vi)_mm_cvtps_epi32(x); }, a);
}
CC_INLINE I16 floor_int(F16 a) {  // truncate, then one less where that went up: a true comparison is -1
    return map<I16>(
        CC_FN(vf x) {
            vi t = (vi)_mm_cvttps_epi32(x);
            return t + (vi)(__builtin_convertvector(t, vf) > x);
        },
        a);
}
CC_INLINE uint32_t to_bits(Mask m) {
    return (uint32_t)_mm_movemask_ps((vf)m.p0) | (uint32_t)_mm_movemask_ps((vf)m.p1) << 4 |
           (uint32_t)_mm_movemask_ps((vf)m.p2) << 8 | (uint32_t)_mm_movemask_ps((vf)m.p3) << 12;
}
CC_INLINE I16 widen_u16(__m128i a, __m128i b) {
    const __m128i z = _mm_setzero_si128();
    return {(vi)_mm_unpacklo_epi16(a, z), (vi)_mm_unpackhi_epi16(a, z), (vi)_mm_unpacklo_epi16(b, z),
            (vi)_mm_unpackhi_epi16(b, z)};
}
CC_INLINE I16 widen_u8(__m128i v) {
    const __m128i z = _mm_setzero_si128();
    return widen_u16(_mm_unpacklo_epi8(v, z), _mm_unpackhi_epi8(v, z));
}
CC_INLINE I16 load_u8(const uint8_t* p) { return widen_u8(_mm_loadu_si128((const __m128i*)p)); }
CC_INLINE I16 load_u16(const void* p) {
    const __m128i* q = (const __m128i*)p;
    return widen_u16(_mm_loadu_si128(q), _mm_loadu_si128(q + 1));
}
CC_INLINE void store_u16(void* p, I16 a) {  // SSE2 packs signed only: sign-extend the low halves first
    const I16 t = map<I16>(CC_FN(vi x) { return (vi)_mm_srai_epi32(_mm_slli_epi32((__m128i)x, 16), 16); }, a);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi32((__m128i)t.p0, (__m128i)t.p1));
    _mm_storeu_si128((__m128i*)p + 1, _mm_packs_epi32((__m128i)t.p2, (__m128i)t.p3));
}
#else
CC_INLINE I16 from_lanes(const int32_t* t) { return bits(load((const float*)(const void*)t)); }
CC_INLINE I16 round_int(F16 a) {
    float t[16];
    int32_t q[16];
    store(t, a);
    for (int j = 0; j < 16; j++) q[j] = (int32_t)__builtin_rintf(t[j]);
    return from_lanes(q);
}
CC_INLINE I16 floor_int(F16 a) {
    float t[16];
    int32_t q[16];
    store(t, a);
    for (int j = 0; j < 16; j++) q[j] = (int32_t)__builtin_floorf(t[j]);
    return from_lanes(q);
}
CC_INLINE uint32_t to_bits(Mask m) {
    int32_t t[16];
    uint32_t r = 0;
    memcpy(t, &m, 64);
    for (int j = 0; j < 16; j++) r |= (uint32_t)(t[j] & 1) << j;
    return r;
}
CC_INLINE I16 load_u8(const uint8_t* p) {
    int32_t t[16];
    for (int j = 0; j < 16; j++) t[j] = p[j];
    return from_lanes(t);
}
CC_INLINE I16 load_u16(const void* p) {
    uint16_t s[16];
    int32_t t[16];
    memcpy(s, p, 32);
    for (int j = 0; j < 16; j++) t[j] = s[j];
    return from_lanes(t);
}
CC_INLINE void store_u16(void* p, I16 a) {
    uint16_t s[16];
    int32_t t[16];
    store(t, a);
    for (int j = 0; j < 16; j++) s[j] = (uint16_t)t[j];
    memcpy(p, s, 32);
}
#endif
#endif
#endif

CC_INLINE F16 load_bytes(const uint8_t* p) { return load((const float*)(const void*)p); }  // any alignment
CC_INLINE void store_bytes(uint8_t* p, F16 a) { store((float*)(void*)p, a); }
CC_INLINE I16 magnitude_bits(F16 a) { return bits(a) & splat(0x7fffffff); }  // |a| as an integer: same order as |a|
enum { INFINITE = 0x7f800000 };                                              // |a| >= INFINITE: inf or NaN

CC_INLINE float as_float(int32_t a) {
    float r;
    memcpy(&r, &a, 4);
    return r;
}
CC_INLINE int32_t as_bits(float a) {
    int32_t r;
    memcpy(&r, &a, 4);
    return r;
}
CC_INLINE bool is_finite(float a) { return (as_bits(a) & 0x7fffffff) < INFINITE; }

// The fixed tree that ends every sum: lanes halved, 8 then 4 then 2 then 1 apart.
CC_INLINE float sum_lanes(F16 a) {
    float t[16];
    store(t, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] = t[i] + t[i + half];
    return t[0];
}
CC_INLINE int32_t max_lanes(I16 a) {
#if CC_ISA == 2
    return _mm512_reduce_max_epi32(a.v);
#else
    int32_t t[16];
    store(t, a);
    for (int i = 1; i < 16; i++) t[0] = t[i] > t[0] ? t[i] : t[0];
    return t[0];
#endif
}
CC_INLINE int32_t or_lanes(I16 a) {
    int32_t t[16], r = 0;
    store(t, a);
    for (int i = 0; i < 16; i++) r |= t[i];
    return r;
}

}  // namespace
