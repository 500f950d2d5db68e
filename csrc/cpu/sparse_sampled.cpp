// Top-k with a threshold from a strided sample, at least 0.8 k elements: see reference/sampled.py for the rule.
//
// Whatever threshold comes out, the elements that reach it are the s largest for some s. So lists of the exact kernel
// serve here too: one sweep with the sampled threshold in nearly all cases; where that was too high, the k largest are
// found exactly and the ladder of lowered thresholds is climbed down on their list, not on the row.
#include "topk_encode.h"

namespace {

constexpr int STEPS = 11;  // the sampled threshold, and ten times 0.8 of the one before
enum : uint32_t { STREAM = 4 };

struct Plan {
    size_t stride, top;  // every stride-th element is looked at; the threshold is the top-th largest of them
};

static Plan plan(size_t n, size_t k) {
    size_t hundredth = (n + 99) / 100, some = (2 * n + k - 1) / k, m = hundredth > some ? hundredth : some;
    if (m >= n || k == n) return {1, k};
    size_t stride = (n + 32 * m - 1) / (32 * m) * 32 + 1;
    while (n / stride < m) stride -= 8;
    return {stride, (m * k + n - 1) / n};
}

// Magnitudes of the sample; returns how many.
template <bool ADD>
static size_t draw(const float* x, const float* add, size_t n, float decay, float add_scale, size_t start,
                   size_t stride, uint32_t* to) {
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    I16 worst = splat(0);
    size_t count = (n - start + stride - 1) / stride, ahead = 64 * stride;
    for (size_t i = 0; i < count; i += 16) {
        float own[16] = {}, other[16] = {};
        size_t here = count - i < 16 ? count - i : 16;
        for (size_t l = 0; l < here; l++) {
            size_t at = start + (i + l) * stride;
            if (at + ahead < n) {
                __builtin_prefetch(x + at + ahead);
                if (ADD) __builtin_prefetch(add + at + ahead);
            }
            own[l] = x[at];
            if (ADD) other[l] = add[at];
        }
        F16 a = load(own), y = keep_finite<ADD>(combine<ADD>(a, load(other), d, s), a, d, zero, worst);
        store((int32_t*)to + i, magnitude_bits(y));  // lanes past the end: the next round's, or slack
    }
    return count;
}

static size_t reaching(const Candidates& list, uint32_t threshold) {
    size_t count = 0;
    for (size_t i = 0; i < list.size; i++) count += (list.bits[i] & MAGNITUDE) >= threshold;
    return count;
}

template <bool ADD>
static bool encode_row(float* x, const float* add, const cc_row& r, float decay, float add_scale, uint8_t* to,
                       int64_t step, int64_t rank, Seen& seen) {
    size_t n = (size_t)r.numel, k = (size_t)r.k, need = (4 * k + 4) / 5;
    Plan how = plan(n, k);
    Candidates list;
    if (!make_lists(list, n, k, how.stride > 1 ? n / how.stride + 1 : 0)) return false;
    float ladder[STEPS] = {};
    bool known = how.stride == 1;  // whether the list holds the k largest and no more
    if (known) {
        uint32_t bound = n > 1024 && k <= n / 2 ? sampled_bound<ADD>(x, add, n, k, decay, add_scale, 4.0, list.spare) : 0;
        collect<ADD>(x, add, n, k, decay, add_scale, bound, list, seen);
        keep_largest(x, list, k);
        ladder[0] = as_float((int32_t)kth_largest(list.bits, k, how.top, list.spare).bits);
    } else {
        uint32_t word = philox((uint32_t)r.offset, (uint32_t)step, (uint32_t)rank, STREAM, r.key).w[0];
        size_t start = (size_t)((uint64_t)word * how.stride >> 32);
        size_t drawn = draw<ADD>(x, add, n, decay, add_scale, start, how.stride, list.spare);
        ladder[0] = as_float((int32_t)kth_largest(list.spare, drawn, how.top, list.spare).bits);
    }
    for (int i = 1; i < STEPS; i++) ladder[i] = 0.8f * ladder[i - 1];
    if (!known) {
        // a small sample guesses badly: begin some steps down, so that one sweep is enough
        int down = how.top >= 512 ? 0 : how.top >= 64 ? 1 : 3;
        if (!sweep<ADD>(x, add, n, k, decay, add_scale, (uint32_t)as_bits(ladder[down]), list, seen, need)) {
            Seen again;
            uint32_t bound = sampled_bound<false>(x, nullptr, n, k, 1.0f, 0.0f, 4.0, list.spare);
            collect<false>(x, nullptr, n, k, 1.0f, 0.0f, bound, list, again);
            keep_largest(x, list, k);
        }
    }
    size_t sent = k;
    for (float threshold : ladder) {
        size_t count = reaching(list, (uint32_t)as_bits(threshold));
        if (count >= need) {
            sent = count < k ? count : k;
            break;
        }
    }
    if (sent < list.size) keep_largest(x, list, sent);
    write_section(list, r, to);
    return true;
}

}  // namespace

CC_KERNEL(cc_topk_sampled_encode, (CC_ENCODE_PARAMS, int64_t step, int64_t rank), (CC_ENCODE_ARGS, step, rank)) {
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!topk_row_valid(r) || !encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, topk_bytes(r), true))
            return CC_BAD_ROW(i);
        Seen seen;
        float* own = x + r.x;
        bool done = true;
        if (r.k == 0)
            encode_nothing(own, r.add >= 0 ? add + r.add : nullptr, r, decay, add_scale, wire + r.wire, seen);
        else if (r.add >= 0)
            done = encode_row<true>(own, add + r.add, r, decay, add_scale, wire + r.wire, step, rank, seen);
        else
            done = encode_row<false>(own, nullptr, r, decay, add_scale, wire + r.wire, step, rank, seen);
        if (!done) return CC_NO_MEMORY;
        seen.report(r, status);
    }
    return 0;
}
