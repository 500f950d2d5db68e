// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): ten rounds of two 32x32 -> 64 bit products on a 128-bit counter.
// Scalar for single draws, and sixteen counters at once for the dithers of stochastic rounding.
#pragma once
#include "simd.h"

namespace {

struct Philox {
    uint32_t w[4];
};

CC_INLINE Philox philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)((uint64_t)key >> 32);
    for (int r = 0; r < 10; r++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

#ifdef CC_X86
// One register holds a counter per 64-bit lane. The product's low half is the next word and may keep its high half as
// garbage, because the next multiplication reads the low 32 bits only: a round is two multiplications, two shifts and
// two three-way xors.
#if CC_ISA == 2
typedef __m512i wide;
CC_INLINE wide wide_mul(wide a, wide b) { return _mm512_mul_epu32(a, b); }
CC_INLINE wide high_xor(wide p, wide c, wide k) {
    return _mm512_ternarylogic_epi64(_mm512_srli_epi64(p, 32), c, k, 0x96);
}
CC_INLINE wide wide_splat(uint64_t a) { return _mm512_set1_epi64((int64_t)a); }
CC_INLINE wide wide_count(uint32_t a) {  // a, a+2, a+4, ... in the low halves
    return _mm512_add_epi32(_mm512_set1_epi64(a), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
}
CC_INLINE I16 merge(const wide* even, const wide* odd) {
    return {_mm512_mask_blend_epi32(0xAAAA, *even, _mm512_slli_epi64(*odd, 32))};
}
enum { CHAINS = 4 };  // registers in flight: as many as hide the latency of a round and fit the register file
#elif CC_ISA == 1
typedef __m256i wide;
CC_INLINE wide wide_mul(wide a, wide b) { return _mm256_mul_epu32(a, b); }
CC_INLINE wide high_xor(wide p, wide c, wide k) {
    return _mm256_xor_si256(_mm256_srli_epi64(p, 32), _mm256_xor_si256(c, k));
}
CC_INLINE wide wide_splat(uint64_t a) { return _mm256_set1_epi64x((int64_t)a); }
CC_INLINE wide wide_count(uint32_t a) {
    return _mm256_add_epi32(_mm256_set1_epi64x(a), _mm256_setr_epi64x(0, 2, 4, 6));
}
CC_INLINE I16 merge(const wide* even, const wide* odd) {
    return {(vi)_mm256_blend_epi32(even[0], _mm256_slli_epi64(odd[0], 32), 0xAA),
            (vi)_mm256_blend_epi32(even[1], _mm256_slli_epi64(odd[1], 32), 0xAA)};
}
enum { CHAINS = 2 };
#else
typedef __m128i wide;
CC_INLINE wide wide_mul(wide a, wide b) { return _mm_mul_epu32(a, b); }
CC_INLINE wide high_xor(wide p, wide c, wide k) { return _mm_xor_si128(_mm_srli_epi64(p, 32), _mm_xor_si128(c, k)); }
CC_INLINE wide wide_splat(uint64_t a) { return _mm_set1_epi64x((int64_t)a); }
CC_INLINE wide wide_count(uint32_t a) { return _mm_add_epi32(_mm_set1_epi64x(a), _mm_set_epi64x(2, 0)); }
CC_INLINE I16 merge(const wide* even, const wide* odd) {
    const __m128i low = _mm_set1_epi64x(0xffffffff);
    vi r[4];
    for (int i = 0; i < 4; i++) r[i] = (vi)_mm_or_si128(_mm_and_si128(even[i], low), _mm_slli_epi64(odd[i], 32));
    return {r[0], r[1], r[2], r[3]};
}
enum { CHAINS = 2 };
#endif
constexpr int LANES = sizeof(wide) / 8, PARTS = 8 / LANES;  // counters per register, registers per eight counters

// Philox on counters (c0, c1, c2, c3) that differ in c0 only: the key schedule, and the halves of the first two rounds
// that are then the same for all.
struct PhiloxStream {
    wide k0[10], k1[10], a1, b3, c3;
    PhiloxStream(uint32_t c1, uint32_t c2, uint32_t c3_, int64_t key) {
        uint32_t a = (uint32_t)key, b = (uint32_t)((uint64_t)key >> 32);
        const uint64_t p1 = (uint64_t)c2 * 0xCD9E8D57u;
        const uint64_t q0 = (uint64_t)((uint32_t)(p1 >> 32) ^ c1 ^ a) * 0xD2511F53u;
        a1 = wide_splat(p1), b3 = wide_splat(q0);
        c3 = wide_splat(c3_);
        for (int r = 0; r < 10; r++, a += 0x9E3779B9u, b += 0xBB67AE85u) k0[r] = wide_splat(a), k1[r] = wide_splat(b);
    }
};

// Words 0..3 of the counters c0 + i, i = 0 .. 16*N-1, sixteen to a vector: out[n][word].
// Even and odd counters live in separate registers until the end.
template <int N> CC_INLINE void philox_vectors(uint32_t c0, const PhiloxStream& s, I16 out[N][4]) {
    const wide m0 = wide_splat(0xD2511F53u), m1 = wide_splat(0xCD9E8D57u);
    wide done[4][2 * N * PARTS];  // word; then vector, parity, part
    constexpr int chains = CHAINS < 2 * N * PARTS ? CHAINS : 2 * N * PARTS;
    for (int from = 0; from < 2 * N * PARTS; from += chains) {
        wide w[4][chains];
#pragma GCC unroll 4
        for (int c = 0; c < chains; c++) {
            const int g = from + c, vector = g / (2 * PARTS), odd = g / PARTS % 2, part = g % PARTS;
            const uint32_t first = c0 + (uint32_t)(16 * vector + 2 * LANES * part + odd);
            const wide p0 = wide_mul(wide_count(first), m0);
            const wide p1 = wide_mul(high_xor(p0, s.c3, s.k1[0]), m1);
            w[0][c] = high_xor(p1, s.a1, s.k0[1]);
            w[1][c] = p1;
            w[2][c] = high_xor(s.b3, p0, s.k1[1]);
            w[3][c] = s.b3;
        }
#pragma GCC unroll 8
        for (int r = 2; r < 10; r++)
#pragma GCC unroll 4
            for (int c = 0; c < chains; c++) {
                const wide p0 = wide_mul(w[0][c], m0), p1 = wide_mul(w[2][c], m1);
                w[0][c] = high_xor(p1, w[1][c], s.k0[r]);
                w[1][c] = p1;
                w[2][c] = high_xor(p0, w[3][c], s.k1[r]);
                w[3][c] = p0;
            }
#pragma GCC unroll 4
        for (int c = 0; c < chains; c++)
            for (int i = 0; i < 4; i++) done[i][from + c] = w[i][c];
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++) out[n][i] = merge(&done[i][n * 2 * PARTS], &done[i][n * 2 * PARTS + PARTS]);
}
#else
struct PhiloxStream {
    uint32_t c1, c2, c3;
    int64_t key;
    PhiloxStream(uint32_t a, uint32_t b, uint32_t c, int64_t k) : c1(a), c2(b), c3(c), key(k) {}
};
template <int N> CC_INLINE void philox_vectors(uint32_t c0, const PhiloxStream& s, I16 out[N][4]) {
    for (int n = 0; n < N; n++) {
        int32_t t[4][16];
        for (int l = 0; l < 16; l++) {
            Philox r = philox(c0 + (uint32_t)(16 * n + l), s.c1, s.c2, s.c3, s.key);
            for (int w = 0; w < 4; w++) t[w][l] = (int32_t)r.w[w];
        }
        memcpy(out[n], t, sizeof t);
    }
}
#endif

}  // namespace
