// One pass over a row: y = decay*x + add_scale*add, store y, and collect what may belong to the k largest.
//
// Whatever reaches the bound is moved out: x gets 0 and the candidate list gets (index, bits of y). The bound is a guess
// of the k-th largest magnitude from below, so nearly all candidates are sent in the end and x needs no second visit;
// the few others are put back. The list has a fixed capacity. When it is full, the k largest of it stay, the others go
// back to x, and the bound rises above the smallest of the k: a later element that only equals it loses the tie to k
// earlier ones. So the result is exact for every guess, and a guess of 0 never fails.
#pragma once
#include "topk_select.h"

namespace {

struct Candidates {
    uint32_t* index;  // ascending
    uint32_t* bits;   // of y, with its sign
    uint32_t* spare;  // as long as the others
    size_t size, capacity;
};

constexpr size_t GROUP = 64, SLACK = GROUP + 16;  // the lists reach this far past `capacity`: a group is not split

// Keeps the k largest candidates (ties: the lowest index) and puts the others back; returns the k-th largest magnitude.
static uint32_t keep_largest(float* x, Candidates& list, size_t k) {
    Threshold limit = kth_largest(list.bits, list.size, k, list.spare);
    size_t kept = 0, i = 0;
#if CC_ISA == 2
    const __m512i mask = _mm512_set1_epi32(MAGNITUDE), edge = _mm512_set1_epi32((int)limit.bits);
    for (; i < list.size; i += 16) {
        size_t left = list.size - i;
        __mmask16 valid = left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
        __m512i bits = _mm512_loadu_si512(list.bits + i), index = _mm512_loadu_si512(list.index + i);
        __m512i size = _mm512_and_si512(bits, mask);
        uint32_t tie = _mm512_mask_cmpeq_epu32_mask(valid, size, edge);
        while ((size_t)__builtin_popcount(tie) > limit.ties) tie ^= 0x80000000u >> __builtin_clz(tie);
        limit.ties -= (size_t)__builtin_popcount(tie);
        __mmask16 keep = (__mmask16)(_mm512_mask_cmpgt_epu32_mask(valid, size, edge) | tie);
        __mmask16 drop = (__mmask16)(valid & ~keep);
        if (drop) _mm512_mask_i32scatter_ps(x, drop, index, _mm512_castsi512_ps(bits), 4);
        _mm512_storeu_si512(list.index + kept, _mm512_maskz_compress_epi32(keep, index));
        _mm512_storeu_si512(list.bits + kept, _mm512_maskz_compress_epi32(keep, bits));
        kept += (size_t)__builtin_popcount(keep);
    }
#endif
    for (; i < list.size; i++) {
        uint32_t index = list.index[i], bits = list.bits[i], size = bits & MAGNITUDE;
        bool tie = size == limit.bits && limit.ties > 0, keep = size > limit.bits || tie;
        limit.ties -= tie;
        if (!keep) memcpy(x + index, &bits, 4);
        list.index[kept] = index;
        list.bits[kept] = bits;
        kept += keep;
    }
    list.size = kept;
    return limit.bits;
}

template <bool ADD>
CC_INLINE void sweep_group(float* x, const float* add, size_t begin, F16 decay, F16 add_scale, int32_t bound,
                           Candidates& list, Seen& seen) {
    const F16 zero = splat(0.0f);
    const I16 below = splat(bound - 1);
    x += begin;
    add += ADD ? begin : 0;
    F16 y[4];
    I16 size[4];
    for (int v = 0; v < 4; v++) {
        F16 a = load(x + 16 * v), b = ADD ? load(add + 16 * v) : a;
        seen.gradient = seen.gradient | bits(b);
        y[v] = combine<ADD>(a, b, decay, add_scale);
        size[v] = magnitude_bits(y[v]);
    }
    I16 top = max(max(size[0], size[1]), max(size[2], size[3]));
    if (__builtin_expect(to_bits(lt(splat(INFINITE - 1), top)) != 0, 0))
        for (int v = 0; v < 4; v++) {
            y[v] = keep_finite<ADD>(y[v], load(x + 16 * v), decay, zero, seen.worst);
            size[v] = magnitude_bits(y[v]);
        }
    if (to_bits(lt(below, top)) == 0) {
        for (int v = 0; v < 4; v++) store(x + 16 * v, y[v]);
        return;
    }
    size_t count = list.size;
#if CC_ISA == 2
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int v = 0; v < 4; v++) {
        Mask take = lt(below, size[v]);
        __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)begin + 16 * v));
        store(x + 16 * v, select(take, zero, y[v]));
        _mm512_storeu_si512(list.index + count, _mm512_maskz_compress_epi32(take.v, index));
        _mm512_storeu_si512(list.bits + count, _mm512_maskz_compress_epi32(take.v, bits(y[v]).v));
        count += (size_t)__builtin_popcount(take.v);
    }
#else
    uint64_t take = 0;
    for (int v = 0; v < 4; v++) {
        take |= (uint64_t)to_bits(lt(below, size[v])) << (16 * v);
        store(x + 16 * v, y[v]);
    }
    for (; take; take &= take - 1, count++) {
        int lane = __builtin_ctzll(take);
        list.index[count] = (uint32_t)begin + (uint32_t)lane;
        memcpy(list.bits + count, x + lane, 4);
        x[lane] = 0.0f;
    }
#endif
    list.size = count;
}

// y of one element, by the same rule as the vectors.
template <bool ADD> CC_INLINE float one_y(const float* x, const float* add, float decay, float add_scale) {
    float own = decay * *x, y = ADD ? own + add_scale * *add : own;
    return is_finite(y) ? y : ADD && is_finite(own) ? own : 0.0f;
}

// false: fewer than `need` reached the bound, and x holds y. true: x holds y without the candidates, which are all that
// reached the bound, or the k largest among them.
template <bool ADD>
static bool sweep(float* x, const float* add, size_t n, size_t k, float decay, float add_scale, uint32_t bound,
                  Candidates& list, Seen& seen, size_t need) {
    const F16 d = splat(decay), s = splat(add_scale);
    size_t i = 0;
    list.size = 0;
    for (; i + GROUP <= n; i += GROUP) {
        sweep_group<ADD>(x, add, i, d, s, (int32_t)bound, list, seen);
        if (list.size > list.capacity) bound = keep_largest(x, list, k) + 1;
    }
    for (; i < n; i++) {
        seen.gradient = seen.gradient | splat(as_bits(ADD ? add[i] : x[i]));
        float own = decay * x[i], raw = ADD ? own + add_scale * add[i] : own;
        seen.worst = max(seen.worst, splat(as_bits(raw) & (int32_t)MAGNITUDE));
        float y = one_y<ADD>(x + i, add + (ADD ? i : 0), decay, add_scale);
        bool take = ((uint32_t)as_bits(y) & MAGNITUDE) >= bound;
        list.index[list.size] = (uint32_t)i;
        list.bits[list.size] = (uint32_t)as_bits(y);
        list.size += take;
        x[i] = take ? 0.0f : y;
    }
    if (list.size >= need) return true;
    for (size_t j = 0; j < list.size; j++) memcpy(x + list.index[j], list.bits + j, 4);
    return false;
}
template <bool ADD>
static bool sweep(float* x, const float* add, size_t n, size_t k, float decay, float add_scale, uint32_t bound,
                  Candidates& list, Seen& seen) {
    return sweep<ADD>(x, add, n, k, decay, add_scale, bound, list, seen, k);
}

}  // namespace
