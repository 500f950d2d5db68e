// What the encoders that send a row's largest elements share: a guess from a sample, the collection, the section.
#pragma once
#include "scratch.h"
#include "topk_section.h"
#include "topk_sweep.h"

namespace {

constexpr size_t LINE = 16;                         // elements of one draw: a cache line
constexpr size_t MIN_LINES = 16, MAX_LINES = 2048;  // of a sample

// A bound that about `slack` standard deviations more than k elements reach, from a sample of y; 0 if none is known.
template <bool ADD>
static uint32_t sampled_bound(const float* x, const float* add, size_t n, size_t k, float decay, float add_scale,
                              double slack, uint32_t* spare) {
    size_t lines = n / 1024 < MIN_LINES ? MIN_LINES : n / 1024 < MAX_LINES ? n / 1024 : MAX_LINES;
    size_t cell = n / lines, drawn = lines * LINE, at[MAX_LINES];
    if (cell < LINE) return 0;  // too few to sample
    for (size_t line = 0; line < lines; line++) {
        // a hash places the line inside its cell, so that no stride of the data meets a stride of ours
        at[line] = line * cell + (uint32_t)(line * 0x9e3779b9u) % (cell - LINE + 1);
        __builtin_prefetch(x + at[line]);
        if (ADD) __builtin_prefetch(add + at[line]);
    }
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    for (size_t line = 0; line < lines; line++) {
        F16 a = load(x + at[line]), y = combine<ADD>(a, ADD ? load(add + at[line]) : a, d, s);
        I16 size = magnitude_bits(y);
        store((int32_t*)spare + line * LINE, bits(select(lt(size, splat(INFINITE)), floats(size), zero)));
    }
    double expected = (double)k * (double)drawn / (double)n;
    double rank = expected + slack * (__builtin_sqrt(expected) + 1.0);
    if (rank >= (double)drawn) return 0;
    return kth_largest(spare, drawn, (size_t)rank + 1, spare).bits;
}

// Lists for the k largest of n and for `sample` values in `spare`; false when memory is out.
static bool make_lists(Candidates& list, size_t n, size_t k, size_t sample) {
    size_t capacity = 3 * k + 4096 < n ? 3 * k + 4096 : n, least = n < LINE * MAX_LINES ? n : LINE * MAX_LINES;
    size_t length = capacity + SLACK;
    length = length > least ? length : least;
    length = length > sample + SLACK ? length : sample + SLACK;
    uint32_t* memory = (uint32_t*)scratch(3 * length * sizeof(uint32_t));
    list = {memory, memory + length, memory + 2 * length, 0, capacity};
    return memory != nullptr;
}

// x <- y without what the list takes: the k largest at least, whatever the bound.
template <bool ADD>
static void collect(float* x, const float* add, size_t n, size_t k, float decay, float add_scale, uint32_t bound,
                    Candidates& list, Seen& seen) {
    if (sweep<ADD>(x, add, n, k, decay, add_scale, bound, list, seen)) return;
    Seen again;  // x holds y now: a sample of that, and if even that fails, no guess
    bound = sampled_bound<false>(x, nullptr, n, k, 1.0f, 0.0f, 8.0, list.spare);
    if (!sweep<false>(x, nullptr, n, k, 1.0f, 0.0f, bound, list, again))
        sweep<false>(x, nullptr, n, k, 1.0f, 0.0f, 0, list, again);
}

// The list as the row's section; what it leaves of the capacity r.k is zero bytes.
static void write_section(const Candidates& list, const cc_row& r, uint8_t* to) {
    loose32* counts = (loose32*)to;
    uint8_t* offsets = to + 4 * topk_blocks(r);
    uint8_t* values = to + topk_values_at(r);
    size_t k = list.size, begin = 0, i = 0;
    for (int64_t block = 0; block < topk_blocks(r); block++) {
        size_t low = begin, high = k;  // the first candidate of the next block, by bisection
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (list.index[middle] / TOPK_BLOCK <= block) low = middle + 1;
            else high = middle;
        }
        counts[block] = (uint32_t)(low - begin);
        begin = low;
    }
    for (; i + 16 <= k; i += 16) {
        I16 index;
        memcpy(&index, list.index + i, 64);
        store_u16(offsets + 2 * i, index & splat(0xffff));
    }
    for (; i < k; i++) ((loose16*)offsets)[i] = (uint16_t)list.index[i];
    memset(offsets + 2 * k, 0, (size_t)(values - offsets) - 2 * k);
    memcpy(values, list.bits, 4 * k);
    memset(values + 4 * k, 0, 4 * ((size_t)r.k - k));
}

// A row of which nothing is sent.
static void encode_nothing(float* x, const float* add, const cc_row& r, float decay, float add_scale, uint8_t* wire,
                           Seen& seen) {
    write_y(x, add, r.numel, decay, add_scale, seen);
    memset(wire, 0, (size_t)topk_bytes(r));
}

}  // namespace
