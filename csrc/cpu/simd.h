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
struct F16 { __m512 v; };
struct I16 { __m512i v; };
struct Mask { __mmask16 v; };

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
// Pieces of the widest native vector. The GNU vector extension gives + - * & | ^ and comparisons on all processors.
#if CC_ISA == 1
#define CC_PIECE 8
#else
#define CC_PIECE 4
#endif
enum { PIECES = 16 / CC_PIECE };
typedef float vf __attribute__((vector_size(CC_PIECE * 4)));
typedef int32_t vi __attribute__((vector_size(CC_PIECE * 4)));
typedef uint32_t vu __attribute__((vector_size(CC_PIECE * 4)));
struct F16 { vf p[PIECES]; };
struct I16 { vi p[PIECES]; };
struct Mask { vi p[PIECES]; };
#define CC_EACH for (int i = 0; i < PIECES; i++)

CC_INLINE F16 load(const float* p) { F16 r; memcpy(&r, p, 64); return r; }
CC_INLINE F16 load(const float* p, int n) { F16 r; float t[16] = {}; memcpy(t, p, 4 * (size_t)n); memcpy(&r, t, 64); return r; }
CC_INLINE void store(float* p, F16 a) { memcpy(p, &a, 64); }
CC_INLINE void store(float* p, F16 a, int n) { float t[16]; memcpy(t, &a, 64); memcpy(p, t, 4 * (size_t)n); }
CC_INLINE F16 splat(float a) { F16 r; CC_EACH r.p[i] = vf{} + a; return r; }
CC_INLINE I16 splat(int32_t a) { I16 r; CC_EACH r.p[i] = vi{} + a; return r; }
CC_INLINE F16 operator+(F16 a, F16 b) { CC_EACH a.p[i] += b.p[i]; return a; }
CC_INLINE F16 operator-(F16 a, F16 b) { CC_EACH a.p[i] -= b.p[i]; return a; }
CC_INLINE F16 operator*(F16 a, F16 b) { CC_EACH a.p[i] *= b.p[i]; return a; }
CC_INLINE I16 operator+(I16 a, I16 b) { CC_EACH a.p[i] = (vi)((vu)a.p[i] + (vu)b.p[i]); return a; }
CC_INLINE I16 operator-(I16 a, I16 b) { CC_EACH a.p[i] = (vi)((vu)a.p[i] - (vu)b.p[i]); return a; }
CC_INLINE I16 operator&(I16 a, I16 b) { CC_EACH a.p[i] &= b.p[i]; return a; }
CC_INLINE I16 operator|(I16 a, I16 b) { CC_EACH a.p[i] |= b.p[i]; return a; }
CC_INLINE I16 operator^(I16 a, I16 b) { CC_EACH a.p[i] ^= b.p[i]; return a; }
template <int n> CC_INLINE I16 shl(I16 a) { CC_EACH a.p[i] = (vi)((vu)a.p[i] << n); return a; }
template <int n> CC_INLINE I16 shr(I16 a) { CC_EACH a.p[i] = (vi)((vu)a.p[i] >> n); return a; }
CC_INLINE I16 max(I16 a, I16 b) { CC_EACH a.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i]; return a; }
CC_INLINE I16 min(I16 a, I16 b) { CC_EACH a.p[i] = a.p[i] < b.p[i] ? a.p[i] : b.p[i]; return a; }
CC_INLINE I16 bits(F16 a) { I16 r; CC_EACH r.p[i] = (vi)a.p[i]; return r; }
CC_INLINE F16 floats(I16 a) { F16 r; CC_EACH r.p[i] = (vf)a.p[i]; return r; }
CC_INLINE F16 to_float(I16 a) { F16 r; CC_EACH r.p[i] = __builtin_convertvector(a.p[i], vf); return r; }
CC_INLINE Mask lt(F16 a, F16 b) { Mask r; CC_EACH r.p[i] = a.p[i] < b.p[i]; return r; }
CC_INLINE Mask lt(I16 a, I16 b) { Mask r; CC_EACH r.p[i] = a.p[i] < b.p[i]; return r; }
CC_INLINE F16 select(Mask m, F16 a, F16 b) {
    F16 r;
    CC_EACH r.p[i] = (vf)((m.p[i] & (vi)a.p[i]) | (~m.p[i] & (vi)b.p[i]));
    return r;
}
CC_INLINE void store(int32_t* p, I16 a) { memcpy(p, &a, 64); }

#if CC_ISA == 1
CC_INLINE I16 round_int(F16 a) { I16 r; CC_EACH r.p[i] = (vi)_mm256_cvtps_epi32(a.p[i]); return r; }
CC_INLINE I16 floor_int(F16 a) { I16 r; CC_EACH r.p[i] = (vi)_mm256_cvttps_epi32(_mm256_floor_ps(a.p[i])); return r; }
CC_INLINE uint32_t to_bits(Mask m) {
    return (uint32_t)_mm256_movemask_ps((vf)m.p[0]) | (uint32_t)_mm256_movemask_ps((vf)m.p[1]) << 8;
}
CC_INLINE I16 load_u8(const uint8_t* p) {
    I16 r;
    CC_EACH r.p[i] = (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8 * i)));
    return r;
}
CC_INLINE I16 load_u16(const void* p) {
    I16 r;
    CC_EACH r.p[i] = (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p + i));
    return r;
}
CC_INLINE void store_u16(void* p, I16 a) {  // lanes must lie in 0..65535
    __m256i t = _mm256_packus_epi32((__m256i)a.p[0], (__m256i)a.p[1]);
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(t, 0xd8));
}
#elif defined(CC_X86)
CC_INLINE I16 round_int(F16 a) { I16 r; CC_EACH r.p[i] = (vi)_mm_cvtps_epi32(a.p[i]); return r; }
CC_INLINE I16 floor_int(F16 a) {  // truncate, then one less where that went up: a true comparison is -1
    I16 r;
    CC_EACH { vi t = (vi)_mm_cvttps_epi32(a.p[i]); r.p[i] = t + (__builtin_convertvector(t, vf) > a.p[i]); }
    return r;
}
CC_INLINE uint32_t to_bits(Mask m) {
    uint32_t r = 0;
    CC_EACH r |= (uint32_t)_mm_movemask_ps((vf)m.p[i]) << (4 * i);
    return r;
}
CC_INLINE I16 load_u16(const void* p) {
    I16 r;
    for (int i = 0; i < 2; i++) {
        __m128i t = _mm_loadu_si128((const __m128i*)p + i), z = _mm_setzero_si128();
        r.p[2 * i] = (vi)_mm_unpacklo_epi16(t, z);
        r.p[2 * i + 1] = (vi)_mm_unpackhi_epi16(t, z);
    }
    return r;
}
CC_INLINE I16 load_u8(const uint8_t* p) {
    __m128i t = _mm_loadu_si128((const __m128i*)p), z = _mm_setzero_si128();
    __m128i w[2] = {_mm_unpacklo_epi8(t, z), _mm_unpackhi_epi8(t, z)};
    return load_u16(w);
}
CC_INLINE void store_u16(void* p, I16 a) {  // SSE2 packs signed only: sign-extend the low halves first
    for (int i = 0; i < 2; i++) {
        __m128i lo = _mm_srai_epi32(_mm_slli_epi32((__m128i)a.p[2 * i], 16), 16);
        __m128i hi = _mm_srai_epi32(_mm_slli_epi32((__m128i)a.p[2 * i + 1], 16), 16);
        _mm_storeu_si128((__m128i*)p + i, _mm_packs_epi32(lo, hi));
    }
}
#else
CC_INLINE I16 round_int(F16 a) {
    I16 r;
    CC_EACH for (int j = 0; j < CC_PIECE; j++) r.p[i][j] = (int32_t)__builtin_rintf(a.p[i][j]);
    return r;
}
CC_INLINE I16 floor_int(F16 a) {
    I16 r;
    CC_EACH for (int j = 0; j < CC_PIECE; j++) r.p[i][j] = (int32_t)__builtin_floorf(a.p[i][j]);
    return r;
}
CC_INLINE uint32_t to_bits(Mask m) {
    uint32_t r = 0;
    CC_EACH for (int j = 0; j < CC_PIECE; j++) r |= (uint32_t)(m.p[i][j] & 1) << (CC_PIECE * i + j);
    return r;
}
CC_INLINE I16 load_u8(const uint8_t* p) { I16 r; int32_t t[16]; for (int j = 0; j < 16; j++) t[j] = p[j]; memcpy(&r, t, 64); return r; }
CC_INLINE I16 load_u16(const void* p) {
    I16 r; uint16_t s[16]; int32_t t[16];
    memcpy(s, p, 32);
    for (int j = 0; j < 16; j++) t[j] = s[j];
    memcpy(&r, t, 64);
    return r;
}
CC_INLINE void store_u16(void* p, I16 a) {
    uint16_t s[16]; int32_t t[16];
    memcpy(t, &a, 64);
    for (int j = 0; j < 16; j++) s[j] = (uint16_t)t[j];
    memcpy(p, s, 32);
}
#endif
#endif

CC_INLINE I16 magnitude_bits(F16 a) { return bits(a) & splat(0x7fffffff); }  // |a| as an integer: same order as |a|
enum { INFINITE = 0x7f800000 };                                               // |a| >= INFINITE: inf or NaN

CC_INLINE float as_float(int32_t a) { float r; memcpy(&r, &a, 4); return r; }
CC_INLINE int32_t as_bits(float a) { int32_t r; memcpy(&r, &a, 4); return r; }
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
