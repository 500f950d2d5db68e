// Exact top-k of y = decay*x + add_scale*add, the residual left in x, in one pass over memory.
//
// The guess that makes one pass enough is last call's threshold (small rows) or a sample (large ones: one cache line in
// 64 costs little there, and unlike an old threshold a sample cannot be stale). The count verifies it; a guess that was
// too high costs a second pass over y, and the result depends on no guess.
#include "topk_encode.h"

namespace {

constexpr size_t ALL = 1024;      // rows up to here: every element is a candidate
constexpr size_t HINTED = 65536;  // rows up to here try the hint first

template <bool ADD>
static bool encode_row(float* x, const float* add, const cc_row& r, float decay, float add_scale, uint8_t* to,
                       float* hint, Seen& seen) {
    size_t n = (size_t)r.numel, k = (size_t)r.k;
    Candidates list;
    if (!make_lists(list, n, k, 0)) return false;
    uint32_t bound = 0;
    if (n > ALL && k <= n / 2) {
        if (hint && n <= HINTED && *hint > 0.0f && is_finite(*hint)) bound = (uint32_t)as_bits(0.95f * *hint);
        else bound = sampled_bound<ADD>(x, add, n, k, decay, add_scale, 4.0, list.spare);
    }
    collect<ADD>(x, add, n, k, decay, add_scale, bound, list, seen);
    uint32_t limit = keep_largest(x, list, k);
    write_section(list, r, to);
    if (hint) *hint = as_float((int32_t)limit);
    return true;
}

// The same for `count` of at most k elements; all that reach the bound, if the caller's count was right.
template <bool ADD>
static bool encode_some(float* x, const float* add, const cc_row& r, float decay, float add_scale, uint8_t* to,
                        size_t count, float bound, Seen& seen) {
    Candidates list;
    if (!make_lists(list, (size_t)r.numel, count, 0)) return false;
    uint32_t guess = bound > 0.0f && is_finite(bound) ? (uint32_t)as_bits(bound) : 0;
    collect<ADD>(x, add, (size_t)r.numel, count, decay, add_scale, guess, list, seen);
    if (list.size > count) keep_largest(x, list, count);
    write_section(list, r, to);
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
            encode_nothing(own, r.add >= 0 ? add + r.add : nullptr, r, decay, add_scale, wire + r.wire, seen);
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

CC_KERNEL(cc_topk_some_encode, (CC_ENCODE_PARAMS, const int64_t* counts, const float* bounds),
          (CC_ENCODE_ARGS, counts, bounds)) {
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!topk_row_valid(r) || counts[i] < 0 || counts[i] > r.k ||
            !encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, topk_bytes(r), true))
            return CC_BAD_ROW(i);
        Seen seen;
        const float* gradient = r.add >= 0 ? add + r.add : nullptr;
        bool done = true;
        if (counts[i] == 0) {
            encode_nothing(x + r.x, gradient, r, decay, add_scale, wire + r.wire, seen);
        } else if (gradient) {
            done = encode_some<true>(x + r.x, gradient, r, decay, add_scale, wire + r.wire, (size_t)counts[i],
                                     bounds[i], seen);
        } else {
            done = encode_some<false>(x + r.x, nullptr, r, decay, add_scale, wire + r.wire, (size_t)counts[i],
                                      bounds[i], seen);
        }
        if (!done) return CC_NO_MEMORY;
        seen.report(r, status);
    }
    return 0;
}
