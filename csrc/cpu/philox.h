// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): ten rounds of two 32x32 -> 64 bit products on a 128-bit counter.
// Scalar for single draws, and sixteen counters at once for the dithers of stochastic rounding.
#pragma once
#include "simd.h"

namespace {

struct Philox { uint32_t w[4]; };

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
enum { WIDE = 1 };  // registers of even (or odd) counters that make sixteen counters
CC_INLINE wide wide_mul(wide a, wide b) { return _mm512_mul_epu32(a, b); }
CC_INLINE wide wide_xor3(wide p, wide c, wide k) {
    return _mm512_ternarylogic_epi64(_mm512_srli_epi64(p, 32), c, k, 0x96);
}
CC_INLINE wide wide_splat(uint32_t a) { return _mm512_set1_epi64(a); }
#elif CC_ISA == 1
typedef __m256i wide;
enum { WIDE = 2 };
CC_INLINE wide wide_mul(wide a, wide b) { return _mm256_mul_epu32(a, b); }
CC_INLINE wide wide_xor3(wide p, wide c, wide k) {
    return _mm256_xor_si256(_mm256_srli_epi64(p, 32), _mm256_xor_si256(c, k));
}
CC_INLINE wide wide_splat(uint32_t a) { return _mm256_set1_epi64x(a); }
#else
typedef __m128i wide;
enum { WIDE = 4 };
CC_INLINE wide wide_mul(wide a, wide b) { return _mm_mul_epu32(a, b); }
CC_INLINE wide wide_xor3(wide p, wide c, wide k) { return _mm_xor_si128(_mm_srli_epi64(p, 32), _mm_xor_si128(c, k)); }
CC_INLINE wide wide_splat(uint32_t a) { return _mm_set1_epi64x(a); }
#endif

struct PhiloxKeys {  // the ten round keys, the same for all counters
    wide k0[10], k1[10];
    explicit PhiloxKeys(int64_t key) {
        uint32_t a = (uint32_t)key, b = (uint32_t)((uint64_t)key >> 32);
        for (int r = 0; r < 10; r++, a += 0x9E3779B9u, b += 0xBB67AE85u) k0[r] = wide_splat(a), k1[r] = wide_splat(b);
    }
};

CC_INLINE void philox_rounds(wide* c0, wide* c1, wide* c2, wide* c3, const PhiloxKeys& keys) {
    const wide m0 = wide_splat(0xD2511F53u), m1 = wide_splat(0xCD9E8D57u);
    for (int r = 0; r < 10; r++)
        for (int i = 0; i < WIDE; i++) {
            wide p0 = wide_mul(c0[i], m0), p1 = wide_mul(c2[i], m1);
            c0[i] = wide_xor3(p1, c1[i], keys.k0[r]);
            c1[i] = p1;
            c2[i] = wide_xor3(p0, c3[i], keys.k1[r]);
            c3[i] = p0;
        }
}

// Words 0..3 of the counters (c0 + lane, c1, c2, c3), lane = 0..15. Even lanes and odd lanes run as two chains.
CC_INLINE void philox16(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, const PhiloxKeys& keys, I16 out[4]) {
    wide s[2][4][WIDE];
    for (int odd = 0; odd < 2; odd++) {
        for (int i = 0; i < WIDE; i++) {
            uint64_t lane[8 / WIDE];
            for (int j = 0; j < 8 / WIDE; j++) lane[j] = c0 + (uint32_t)(2 * (i * (8 / WIDE) + j) + odd);
            memcpy(&s[odd][0][i], lane, sizeof(wide));
            s[odd][1][i] = wide_splat(c1), s[odd][2][i] = wide_splat(c2), s[odd][3][i] = wide_splat(c3);
        }
        philox_rounds(s[odd][0], s[odd][1], s[odd][2], s[odd][3], keys);
    }
    for (int w = 0; w < 4; w++)
        for (int i = 0; i < WIDE; i++) {
            wide even = s[0][w][i], odd = s[1][w][i];
#if CC_ISA == 2
            out[w].v = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
#elif CC_ISA == 1
            out[w].p[i] = (vi)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
            const __m128i low = _mm_set1_epi64x(0xffffffff);
            out[w].p[i] = (vi)_mm_or_si128(_mm_and_si128(even, low), _mm_slli_epi64(odd, 32));
#endif
        }
}
#else
struct PhiloxKeys {
    int64_t key;
    explicit PhiloxKeys(int64_t k) : key(k) {}
};
CC_INLINE void philox16(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, const PhiloxKeys& keys, I16 out[4]) {
    int32_t t[4][16];
    for (int l = 0; l < 16; l++) {
        Philox r = philox(c0 + (uint32_t)l, c1, c2, c3, keys.key);
        for (int w = 0; w < 4; w++) t[w][l] = (int32_t)r.w[w];
    }
    memcpy(out, t, sizeof t);
}
#endif

}  // namespace
