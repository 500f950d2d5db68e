// What both sketches share: rows of k sums, the input, and the rule for numbers whose sums could overflow.
#pragma once
#include "rows.h"

namespace {

typedef float loosef __attribute__((aligned(1), may_alias));

constexpr float LIMIT = 0x1p64f;  // a row with such a number is sent as zeros

CC_INLINE bool sums_valid(const cc_row& r) {
    return r.numel >= 0 && r.numel <= MAX_NUMEL && r.k >= (r.numel > 0) && r.k < (int64_t)1 << 31;
}

// x <- y; false where the row is sent as zeros, which are then written.
CC_INLINE bool sketch_input(const cc_row& r, float* y, const float* add, uint8_t* sums, uint8_t* status, float decay,
                            float add_scale) {
    Seen seen;
    write_y(y, add, r.numel, decay, add_scale, seen);
    seen.report(r, status);
    bool small = r.numel > 0;
    if (max_lanes(seen.worst) >= as_bits(LIMIT))
        for (int64_t i = 0; i < r.numel; i++) small &= __builtin_fabsf(y[i]) < LIMIT;
    if (small) return true;
    if (r.numel) status[0] |= 1;
    memset(sums, 0, 4 * (size_t)r.k);
    return false;
}

}  // namespace
