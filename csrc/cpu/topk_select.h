// The exact k-th largest magnitude of a list of candidates.
//
// Magnitudes are the bits of |y|, which order like the floats and order denormals too. Each round makes a histogram of
// the leading bits that still differ, finds the bin where the count from the top passes k, and goes on with that bin
// alone: two rounds for a million values, never more than nine, whatever the values are.
#pragma once
#include "rows.h"

namespace {

constexpr uint32_t MAGNITUDE = 0x7fffffff;

struct Threshold {
    uint32_t bits;  // the k-th largest magnitude
    size_t ties;    // how many values of exactly that magnitude belong to the k largest
};

// Copies the magnitudes in [low, low + width) to `to`, which may be `from`: it never runs ahead of the reads.
static size_t filter(const uint32_t* from, size_t n, uint32_t low, uint32_t width, uint32_t* to) {
    size_t kept = 0, i = 0;
#if CC_ISA == 2
    const __m512i mask = _mm512_set1_epi32(MAGNITUDE), first = _mm512_set1_epi32((int)low),
                  span = _mm512_set1_epi32((int)width);
    for (; i + 16 <= n; i += 16) {
        __m512i value = _mm512_and_si512(_mm512_loadu_si512(from + i), mask);
        __mmask16 in = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(value, first), span);
        // compressed in a register: a compressing store to memory is microcode on some processors
        _mm512_storeu_si512(to + kept, _mm512_maskz_compress_epi32(in, value));
        kept += (size_t)__builtin_popcount(in);
    }
#endif
    for (; i < n; i++) {
        uint32_t value = from[i] & MAGNITUDE;
        to[kept] = value;
        kept += value - low < width;
    }
    return kept;
}

// 1 <= k <= n. `spare` has room for n values and is overwritten; `from` may carry sign bits, which are ignored.
static Threshold kth_largest(const uint32_t* from, size_t n, size_t k, uint32_t* spare) {
    constexpr int LOG_BINS = 11, TABLES = 4;
    uint32_t histogram[TABLES << LOG_BINS];
    for (;;) {
        uint32_t low = MAGNITUDE, high = 0;
        for (size_t i = 0; i < n; i++) {
            uint32_t value = from[i] & MAGNITUDE;
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
        if (low == high) return {low, k};
        // as many bins as values, within 16 and 2048, and not more than there are different values
        int differing = 32 - __builtin_clz(high - low), log_bins = 63 - __builtin_clzll(n);
        log_bins = log_bins < 4 ? 4 : log_bins > LOG_BINS ? LOG_BINS : log_bins;
        log_bins = log_bins > differing ? differing : log_bins;
        int shift = differing - log_bins;
        // several tables, or equal neighbours would each wait for the last increment of the same counter
        size_t bins = (size_t)1 << log_bins, tables = n >= 4 * bins ? TABLES : 1;
        size_t i = 0;
        memset(histogram, 0, sizeof(uint32_t) * bins * tables);
        if (tables == TABLES)
            for (; i + TABLES <= n; i += TABLES)
                for (size_t t = 0; t < TABLES; t++) histogram[t * bins + (((from[i + t] & MAGNITUDE) - low) >> shift)]++;
        for (; i < n; i++) histogram[((from[i] & MAGNITUDE) - low) >> shift]++;
        for (size_t t = 1; t < tables; t++)
            for (size_t b = 0; b < bins; b++) histogram[b] += histogram[t * bins + b];
        size_t bin = bins - 1;
        while (histogram[bin] < k) k -= histogram[bin--];
        uint32_t begin = low + ((uint32_t)bin << shift);
        if (shift == 0) return {begin, k};
        n = filter(from, n, begin, 1u << shift, spare);
        from = spare;
    }
}

}  // namespace
