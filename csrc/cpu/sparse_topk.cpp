// Exact top-k of y = decay*x + add_scale*add, the residual left in x, in one pass over memory.
//
// The guess that makes one pass enough is last call's threshold (small rows) or a sample (large ones: one cache line in
// 64 costs little there, and unlike an old threshold a sample cannot be stale). The count verifies it; a guess that was
// too high costs a second pass over y, and the result depends on no guess.
#include "scratch.h"
#include "topk_section.h"
#include "topk_sweep.h"

namespace {

constexpr size_t LINE = 16;                         // elements of one draw: a cache line
constexpr size_t MIN_LINES = 16, MAX_LINES = 2048;  // of a sample
constexpr size_t ALL = 1024;                        // rows up to here: every element is a candidate
constexpr size_t HINTED = 65536;                    // rows up to here try the hint first

// A bound that about `slack` standard deviations more than k elements reach, from a sample of y.
template <bool ADD>
static uint32_t sampled_bound(const float* x, const float* add, size_t n, size_t k, float decay, float add_scale,
                              double slack, uint32_t* spare) {
    size_t lines = n / 1024 < MIN_LINES ? MIN_LINES : n / 1024 < MAX_LINES ? n / 1024 : MAX_LINES;
    size_t cell = n / lines, drawn = lines * LINE, at[MAX_LINES];
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
    if (k % 2) ((loose16*)offsets)[k] = 0;
    memcpy(values, list.bits, 4 * k);
}

template <bool ADD>
static bool encode_row(float* x, const float* add, const cc_row& r, float decay, float add_scale, uint8_t* to,
                       float* hint, Seen& seen) {
    size_t n = (size_t)r.numel, k = (size_t)r.k, capacity = 3 * k + 4096 < n ? 3 * k + 4096 : n;
    size_t sample = n < LINE * MAX_LINES ? n : LINE * MAX_LINES, length = capacity + SLACK;
    length = length > sample ? length : sample;
    uint32_t* memory = (uint32_t*)scratch(3 * length * sizeof(uint32_t));
    if (!memory) return false;
    Candidates list = {memory, memory + length, memory + 2 * length, 0, capacity};
    uint32_t bound = 0;
    if (n > ALL && k <= n / 2) {
        if (hint && n <= HINTED && *hint > 0.0f && is_finite(*hint)) bound = (uint32_t)as_bits(0.95f * *hint);
        else bound = sampled_bound<ADD>(x, add, n, k, decay, add_scale, 4.0, list.spare);
    }
    if (!sweep<ADD>(x, add, n, k, decay, add_scale, bound, list, seen)) {
        Seen again;  // x holds y now: a sample of that, and if even that fails, no guess
        bound = sampled_bound<false>(x, nullptr, n, k, 1.0f, 0.0f, 8.0, list.spare);
        if (!sweep<false>(x, nullptr, n, k, 1.0f, 0.0f, bound, list, again))
            sweep<false>(x, nullptr, n, k, 1.0f, 0.0f, 0, list, again);
    }
    uint32_t limit = k ? keep_largest(x, list, k) : 0;
    write_section(list, r, to);
    if (hint) *hint = as_float((int32_t)limit);
    return true;
}

}  // namespace

CC_KERNEL(cc_topk_encode, (CC_ENCODE_PARAMS, float* hint), (CC_ENCODE_ARGS, hint)) {
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!topk_row_valid(r) || !encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, topk_bytes(r), true))
            return CC_BAD_ROW(i);
        Seen seen;
        float *own = x + r.x, *guess = hint ? hint + i : nullptr;
        bool done = true;
        if (r.k == 0) {
            write_y(own, r.add >= 0 ? add + r.add : nullptr, r.numel, decay, add_scale, seen);
            memset(wire + r.wire, 0, (size_t)topk_bytes(r));
            if (guess) *guess = 0.0f;
        } else if (r.add >= 0) {
            done = encode_row<true>(own, add + r.add, r, decay, add_scale, wire + r.wire, guess, seen);
        } else {
            done = encode_row<false>(own, nullptr, r, decay, add_scale, wire + r.wire, guess, seen);
        }
        if (!done) return CC_NO_MEMORY;
        seen.report(r, status);
    }
    return 0;
}
