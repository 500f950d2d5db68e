// Walsh-Hadamard transforms in registers and in the first-level cache.
//
// A stage h replaces t[i], t[i + h] by t[i] + t[i + h], t[i] - t[i + h]. Stages run in the order h = 1, 2, 4, ...; how
// many of them share a pass over memory does not change a bit. Within sixteen lanes: swap neighbours, flip the sign of
// the upper ones, add. Between vectors: plain sums and differences of as many vectors as there are registers.
#pragma once
#include "simd.h"

namespace {

constexpr int64_t L1 = 4096;  // floats that stay in the first-level cache during all their stages

#if CC_ISA == 2
typedef F16 Native;
constexpr int64_t WIDTH = 16;
constexpr int FIRST = 16, RADIX = 16;  // vectors of sixteen lanes in the first pass; native vectors in the later ones
CC_INLINE Native load_native(const float* p) { return load(p); }
CC_INLINE void store_native(float* p, Native a) { store(p, a); }
CC_INLINE F16 fold(F16 a, F16 swapped, int upper) {  // upper: the lanes that get swapped - a; the others swapped + a
    const __m512 sum = _mm512_add_ps(swapped.v, a.v);
    return {_mm512_mask_sub_ps(sum, (__mmask16)upper, swapped.v, a.v)};
}
// Stages 1, 2, 4 and 8 (the first COUNT of them) inside each vector.
template <int COUNT> CC_INLINE F16 lanes(F16 a) {
    if constexpr (COUNT > 0) a = fold(a, {_mm512_permute_ps(a.v, 0xB1)}, 0xAAAA);
    if constexpr (COUNT > 1) a = fold(a, {_mm512_permute_ps(a.v, 0x4E)}, 0xCCCC);
    if constexpr (COUNT > 2) a = fold(a, {_mm512_shuffle_f32x4(a.v, a.v, 0xB1)}, 0xF0F0);
    if constexpr (COUNT > 3) a = fold(a, {_mm512_shuffle_f32x4(a.v, a.v, 0x4E)}, 0xFF00);
    return a;
}
// a with the sign of lane l changed where bit l of m is set.
CC_INLINE F16 flip(F16 a, uint32_t m) {
    const __m512i v = _mm512_castps_si512(a.v);
    return {_mm512_castsi512_ps(_mm512_mask_xor_epi32(v, (__mmask16)m, v, _mm512_set1_epi32((int)0x80000000)))};
}
#else
typedef vf Native;
constexpr int64_t WIDTH = CC_PIECE;
constexpr int FIRST = CC_ISA == 1 ? 4 : 2, RADIX = 8;
CC_INLINE Native load_native(const float* p) { return *(const vf_at*)p; }
CC_INLINE void store_native(float* p, Native a) { *(vf_at*)p = a; }
constexpr int32_t MINUS = -0x7fffffff - 1;
CC_INLINE vf negate(vf a, vi signs) { return (vf)((vi)a ^ signs); }
#if CC_ISA == 1
CC_INLINE vf stage1(vf a) {
    return (vf)_mm256_permute_ps(a, 0xB1) + negate(a, (vi){0, MINUS, 0, MINUS, 0, MINUS, 0, MINUS});
}
CC_INLINE vf stage2(vf a) {
    return (vf)_mm256_permute_ps(a, 0x4E) + negate(a, (vi){0, 0, MINUS, MINUS, 0, 0, MINUS, MINUS});
}
CC_INLINE vf stage4(vf a) {
    return (vf)_mm256_permute2f128_ps(a, a, 1) + negate(a, (vi){0, 0, 0, 0, MINUS, MINUS, MINUS, MINUS});
}
#else
#if defined(__clang__)
#define CC_SHUFFLE(a, ...) __builtin_shufflevector(a, a, __VA_ARGS__)
#else
#define CC_SHUFFLE(a, ...) __builtin_shuffle(a, (vi){__VA_ARGS__})
#endif
CC_INLINE vf stage1(vf a) { return CC_SHUFFLE(a, 1, 0, 3, 2) + negate(a, (vi){0, MINUS, 0, MINUS}); }
CC_INLINE vf stage2(vf a) { return CC_SHUFFLE(a, 2, 3, 0, 1) + negate(a, (vi){0, 0, MINUS, MINUS}); }
#endif
template <int COUNT> CC_INLINE F16 lanes(F16 a) {
    if constexpr (COUNT > 0) a = map<F16>(CC_FN(vf x) { return stage1(x); }, a);
    if constexpr (COUNT > 1) a = map<F16>(CC_FN(vf x) { return stage2(x); }, a);
#if CC_ISA == 1
    if constexpr (COUNT > 2) a = map<F16>(CC_FN(vf x) { return stage4(x); }, a);
    if constexpr (COUNT > 3) a = {a.p0 + a.p1, a.p0 - a.p1};
#else
    if constexpr (COUNT > 2) a = {a.p0 + a.p1, a.p0 - a.p1, a.p2 + a.p3, a.p2 - a.p3};
    if constexpr (COUNT > 3) a = {a.p0 + a.p2, a.p1 + a.p3, a.p0 - a.p2, a.p1 - a.p3};
#endif
    return a;
}
alignas(64) static const int32_t lane_bit[16] = {1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                                 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
CC_INLINE F16 flip(F16 a, uint32_t m) {
    const I16 own = bits(load((const float*)(const void*)lane_bit));
    return map<F16>(CC_FN(vf x, vi k, vi b) { return negate(x, ((k & b) == b) & ((vi){} + MINUS)); }, a,
                    splat((int32_t)m), own);
}
#endif

// N vectors as a binary tree of named members, which compilers keep in registers.
template <class T, int N> struct Tile {
    Tile<T, N / 2> a, b;
};
template <class T> struct Tile<T, 1> {
    T a;
};
template <class T> CC_INLINE Tile<T, 1> sum(Tile<T, 1> x, Tile<T, 1> y) { return {x.a + y.a}; }
template <class T> CC_INLINE Tile<T, 1> difference(Tile<T, 1> x, Tile<T, 1> y) { return {x.a - y.a}; }
template <class T, int N> CC_INLINE Tile<T, N> sum(Tile<T, N> x, Tile<T, N> y) { return {sum(x.a, y.a), sum(x.b, y.b)}; }
template <class T, int N> CC_INLINE Tile<T, N> difference(Tile<T, N> x, Tile<T, N> y) {
    return {difference(x.a, y.a), difference(x.b, y.b)};
}
template <class T> CC_INLINE Tile<T, 1> hadamard(Tile<T, 1> t) { return t; }
template <class T, int N> CC_INLINE Tile<T, N> hadamard(Tile<T, N> t) {
    const Tile<T, N / 2> a = hadamard(t.a), b = hadamard(t.b);
    return {sum(a, b), difference(a, b)};
}

// N vectors from a source, their lanes transformed on the way, and to memory.
template <int N, class S> CC_INLINE Tile<F16, N> gather(S& source, int64_t i) {
    if constexpr (N == 1) return {lanes<4>(source.at(i))};
    else {
        const Tile<F16, N / 2> a = gather<N / 2>(source, i);
        return {a, gather<N / 2>(source, i + 8 * N)};
    }
}
CC_INLINE void scatter(float* p, Tile<F16, 1> t) { store(p, t.a); }
template <int N> CC_INLINE void scatter(float* p, Tile<F16, N> t) {
    scatter(p, t.a);
    scatter(p + 8 * N, t.b);
}

template <int N> CC_INLINE Tile<Native, N> pick(const float* p, int64_t h) {
    if constexpr (N == 1) return {load_native(p)};
    else return {pick<N / 2>(p, h), pick<N / 2>(p + N / 2 * h, h)};
}
CC_INLINE void drop(float* p, int64_t, Tile<Native, 1> t) { store_native(p, t.a); }
template <int N> CC_INLINE void drop(float* p, int64_t h, Tile<Native, N> t) {
    drop(p, h, t.a);
    drop(p + N / 2 * h, h, t.b);
}
// Stages h, 2h, ..., N/2*h of n elements in place.
template <int N> CC_INLINE void pass(float* z, int64_t n, int64_t h) {
    for (int64_t base = 0; base < n; base += N * h)
        for (int64_t i = base; i < base + h; i += WIDTH) drop(z + i, h, hadamard(pick<N>(z + i, h)));
}
// All stages from h on.
static inline void stages(float* z, int64_t n, int64_t h) {
    while (h < n) {
        const int64_t left = n / h;
        if (RADIX >= 16 && left >= 16) pass<RADIX>(z, n, h), h *= RADIX;
        else if (left >= 8) pass<8>(z, n, h), h *= 8;
        else if (left == 4) pass<4>(z, n, h), h *= 4;
        else pass<2>(z, n, h), h *= 2;
    }
}

template <int N, class S> CC_INLINE void first_pass(S& source, int64_t from, int64_t n, float* z) {
    for (int64_t i = from; i < from + n; i += 16 * N) {
        source.begin(i);
        scatter(z + i, hadamard(gather<N>(source, i)));
    }
}
// z <- H source, n elements, a power of two. source.at(i): the vector from element i on; at(i, n): n < 16 of them;
// begin(i) comes before the (at most 256) elements from i on are asked for, in ascending order.
template <class S> static inline void transform(S& source, int64_t n, float* z) {
    if (n < 16) {
        source.begin(0);
        const F16 a = source.at(0, (int)n);
        store(z, n == 8 ? lanes<3>(a) : n == 4 ? lanes<2>(a) : n == 2 ? lanes<1>(a) : a, (int)n);
        return;
    }
    const int64_t chunk = n < L1 ? n : L1;
    for (int64_t at = 0; at < n; at += chunk) {
        int64_t h = 16 * FIRST;
        if (chunk >= h) first_pass<FIRST>(source, at, chunk, z);
        else if (FIRST > 8 && chunk >= 128) first_pass<8>(source, at, chunk, z), h = 128;
        else if (FIRST > 4 && chunk >= 64) first_pass<4>(source, at, chunk, z), h = 64;
        else if (FIRST > 2 && chunk >= 32) first_pass<2>(source, at, chunk, z), h = 32;
        else first_pass<1>(source, at, chunk, z), h = 16;
        stages(z + at, chunk, h);
    }
    stages(z, n, chunk);
}

}  // namespace
