// Codebooks of 2^B symmetric levels: sixteen look-ups at once, and the nearest level by a binary search in them.
#pragma once
#include "codes.h"
#include "decode.h"

namespace {

// table[k] in every lane, k in 0 .. N-1; the table is aligned to 64 bytes and holds at least sixteen floats.
template <int N> CC_INLINE F16 pick(const float* table, I16 k) {
#if CC_ISA == 2
    const __m512* t = (const __m512*)table;
    if constexpr (N <= 16) return {_mm512_permutexvar_ps(k.v, t[0])};
    else if constexpr (N == 32) return {_mm512_permutex2var_ps(t[0], k.v, t[1])};
    else {
        const F16 low = pick<N / 2>(table, k), high = pick<N / 2>(table + N / 2, k);
        return {_mm512_mask_blend_ps(_mm512_test_epi32_mask(k.v, _mm512_set1_epi32(N / 2)), low.v, high.v)};
    }
#elif CC_ISA == 1
    const __m256i a = (__m256i)k.p0, b = (__m256i)k.p1;
    if constexpr (N <= 8) {
        const __m256 t = _mm256_load_ps(table);
        return {_mm256_permutevar8x32_ps(t, a), _mm256_permutevar8x32_ps(t, b)};
    } else return {_mm256_i32gather_ps(table, a, 4), _mm256_i32gather_ps(table, b, 4)};
#else
    int32_t at[16];
    float found[16];
    store(at, k);
    for (int l = 0; l < 16; l++) found[l] = table[at[l]];
    return load(found);
#endif
}

CC_INLINE I16 twice_plus(I16 k, Mask one) {  // 2k, or 2k + 1 where the mask is set
#if CC_ISA == 2
    const I16 twice = k + k;
    return {_mm512_mask_add_epi32(twice.v, one.v, twice.v, _mm512_set1_epi32(1))};
#else
    return map<I16>(CC_FN(vi a, vi m) { return a + a - m; }, k, one);
#endif
}
CC_INLINE I16 all_ones(Mask m) {
#if CC_ISA == 2
    return {_mm512_maskz_set1_epi32(m.v, -1)};
#else
    return map<I16>(CC_FN(vi a) { return a; }, m);
#endif
}

// The positive half of a codebook, and the boundaries between its levels in the order of the search: probe[l][k] is
// what the k-th interval of 2^l is halved by.
template <int B> struct Book {
    enum { M = B ? 1 << (B - 1) : 1, ROOM = M < 16 ? 16 : M };
    alignas(64) float level[ROOM] = {};
    alignas(64) float probe[B > 1 ? B - 1 : 1][ROOM] = {};
    explicit Book(const float* half) {
        for (int i = 0; i < M && B; i++) level[i] = half[i];
        for (int l = 0; l < B - 1; l++)
            for (int k = 0; k < 1 << l; k++) {
                const int i = (2 * k + 1) * (M >> (l + 1));
                probe[l][k] = (half[i] + half[i - 1]) * 0.5f;
            }
    }
    template <int L> CC_INLINE I16 search(const Book& book, F16 size, I16 k) {
        if constexpr (L < B - 1) {
            const F16 p = L ? pick<(1 << L)>(book.probe[L], k) : splat(book.probe[0][0]);
            return search<L + 1>(book, size, twice_plus(k, lt(p, size)));
        } else return k;
    }
    // The number of boundaries below |t|.
    inline __attribute__((always_inline)) I16 nearest(F16 size) const { return search<0>(*this, size, splat(0)); }
    inline __attribute__((always_inline)) F16 size_of(I16 index) const { return pick<M>(level, index); }
    // Rank among all 2^B levels: M - 1 - index or M + index.
    CC_INLINE I16 code(I16 index, Mask negative) {
        return (index + splat((int32_t)M)) ^ (all_ones(negative) & splat((int32_t)(2 * M - 1)));
    }
};

// The value of a code: `half` holds the positive values, 2^(B-1) of them.
template <int B> CC_INLINE F16 value_of(const float* half, I16 code) {
    const I16 d = code - splat((int32_t)(1 << (B - 1)));
    const I16 sign = d & splat(INT32_MIN), index = d ^ all_ones(lt(d, splat(0)));
    return floats(bits(pick<(1 << (B - 1))>(half, index)) ^ sign);  // turned: a forged scale may be negative
}

}  // namespace
