// Statistics of magnitudes above a threshold, for selections that fit a distribution: see reference/tails.py.
//
// Two kernels: one applies the input rule and sums over a whole row while it is there; the other copies what exceeds a
// threshold to a list and sums over that. The next threshold is then applied to the list, in place.
#include "rows.h"

namespace {

constexpr int64_t BLOCK = 512;
constexpr int FIELDS = 5;  // count, sum, sum of squares, smallest, sum of logarithms

// The logarithm of base 2, from the exponent and a polynomial of the mantissa m = 1 + t: t*(c0 + c1 t + ... + c5 t^5),
// off by 2.2e-6 at most. What is smaller than 2^-126 counts as that.
CC_INLINE F16 log2_of(F16 a) {
    I16 word = max(bits(a), splat(0x00800000));
    F16 t = floats((word & splat(0x007fffff)) | splat(0x3f800000)) - splat(1.0f);
    F16 p = splat(-0x1.b17a34p-6f);
    p = p * t + splat(0x1.f9a7fep-4f);
    p = p * t + splat(-0x1.1e3f2cp-2f);
    p = p * t + splat(0x1.d544e8p-2f);
    p = p * t + splat(-0x1.6fc2a4p-1f);
    p = p * t + splat(0x1.714b2ap+0f);
    return to_float(shr<23>(word) - splat(127)) + p * t;
}

// Sums per block in sixteen fp32 lanes, blocks in sixteen fp64 lanes: the same tree twice.
struct Totals {
    double sum[16] = {}, squares[16] = {}, logs[16] = {};
    int64_t blocks = 0;
    I16 least = splat(INFINITE);
};

static double tree(double* t) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] = t[i] + t[i + half];
    return t[0];
}

static void finish(Totals& totals, int64_t count, double* to) {
    int32_t t[16];
    store(t, totals.least);
    for (int i = 1; i < 16; i++) t[0] = t[i] < t[0] ? t[i] : t[0];
    to[0] = (double)count;
    to[1] = tree(totals.sum);
    to[2] = tree(totals.squares);
    to[3] = count ? (double)as_float(t[0]) : 0.0;
    to[4] = tree(totals.logs);
}

struct Lanes {
    F16 sum = splat(0.0f), squares = splat(0.0f), logs = splat(0.0f);
};

template <bool SQUARES, bool LOGS> CC_INLINE void gather(Lanes& lanes, Totals& totals, F16 a) {
    lanes.sum = lanes.sum + a;
    if (SQUARES) lanes.squares = lanes.squares + a * a;
    if (LOGS) lanes.logs = lanes.logs + log2_of(a);
    totals.least = min(totals.least, bits(a));
}
// The last vector of a row: absent lanes add +0 and are not the smallest.
template <bool SQUARES, bool LOGS> CC_INLINE void gather(Lanes& lanes, Totals& totals, F16 a, int n) {
    static const int32_t order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    I16 place;
    memcpy(&place, order, 64);
    Mask there = lt(place, splat(n));
    lanes.sum = lanes.sum + a;
    if (SQUARES) lanes.squares = lanes.squares + a * a;
    if (LOGS) lanes.logs = lanes.logs + select(there, log2_of(a), splat(0.0f));
    totals.least = min(totals.least, bits(select(there, a, floats(splat(INFINITE)))));
}
template <bool SQUARES, bool LOGS> CC_INLINE void close(const Lanes& lanes, Totals& totals) {
    int64_t lane = totals.blocks++ % 16;
    totals.sum[lane] += (double)sum_lanes(lanes.sum);
    if (SQUARES) totals.squares[lane] += (double)sum_lanes(lanes.squares);
    if (LOGS) totals.logs[lane] += (double)sum_lanes(lanes.logs);
}

template <bool ADD, bool SQUARES, bool LOGS>
static void whole_row(float* x, const float* add, int64_t n, float decay, float add_scale, Seen& seen, double* to) {
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    const I16 sign = splat(0x7fffffff);
    Totals totals;
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        int64_t end = begin + BLOCK < n ? begin + BLOCK : n, i = begin;
        Lanes lanes;
        for (; i + 16 <= end; i += 16) {
            F16 a = load(x + i), b = ADD ? load(add + i) : a;
            seen.gradient = seen.gradient | bits(b);
            F16 y = keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst);
            store(x + i, y);
            gather<SQUARES, LOGS>(lanes, totals, floats(bits(y) & sign));
        }
        if (i < end) {
            int m = (int)(end - i);
            F16 a = load(x + i, m), b = ADD ? load(add + i, m) : a;
            seen.gradient = seen.gradient | bits(b);
            F16 y = keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst);
            store(x + i, y, m);
            gather<SQUARES, LOGS>(lanes, totals, floats(bits(y) & sign), m);
        }
        close<SQUARES, LOGS>(lanes, totals);
    }
    finish(totals, n, to);
}

// |from| above the threshold, in order; `to` may be `from`: it never runs ahead of the reads.
static int64_t exceeding(const float* from, int64_t n, float threshold, float* to) {
    const F16 edge = splat(threshold);
    const I16 sign = splat(0x7fffffff);
    int64_t kept = 0, i = 0;
    for (; i + 16 <= n; i += 16) {
        F16 a = floats(bits(load(from + i)) & sign);
        Mask over = lt(edge, a);
#if CC_ISA == 2
        // compressed in a register: a compressing store to memory is microcode on some processors
        _mm512_storeu_ps(to + kept, _mm512_maskz_compress_ps(over.v, a.v));
        kept += __builtin_popcount(over.v);
#else
        float t[16];
        store(t, a);
        for (uint32_t left = to_bits(over); left; left &= left - 1) to[kept++] = t[__builtin_ctz(left)];
#endif
    }
    for (; i < n; i++) {
        float a = as_float(as_bits(from[i]) & 0x7fffffff);
        if (a > threshold) to[kept++] = a;
    }
    return kept;
}

template <bool SQUARES> static void tail(const float* from, int64_t n, float threshold, float* list, double* to) {
    constexpr int64_t PIECE = 4096;  // what was copied is summed while it lies in the cache
    Totals totals;
    int64_t kept = 0, summed = 0;
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        kept += exceeding(from + begin, n - begin < PIECE ? n - begin : PIECE, threshold, list + kept);
        for (; kept - summed >= BLOCK; summed += BLOCK) {
            Lanes lanes;
            for (int64_t i = 0; i < BLOCK; i += 16) gather<SQUARES, false>(lanes, totals, load(list + summed + i));
            close<SQUARES, false>(lanes, totals);
        }
    }
    if (summed < kept) {
        Lanes lanes;
        for (; summed + 16 <= kept; summed += 16) gather<SQUARES, false>(lanes, totals, load(list + summed));
        if (summed < kept) {
            int m = (int)(kept - summed);
            gather<SQUARES, false>(lanes, totals, load(list + summed, m), m);
        }
        close<SQUARES, false>(lanes, totals);
    }
    finish(totals, kept, to);
}

}  // namespace

CC_KERNEL(cc_magnitude_stats, (CC_ENCODE_PARAMS, double* stats, int squares, int logs),
          (CC_ENCODE_ARGS, stats, squares, logs)) {
    (void)wire;
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, 0, true)) return CC_BAD_ROW(i);
        Seen seen;
        float* own = x + r.x;
        const float* other = r.add >= 0 ? add + r.add : nullptr;
        double* to = stats + FIELDS * i;
#define CC_ROW(S, L)                                                                     \
    (other ? whole_row<true, S, L>(own, other, r.numel, decay, add_scale, seen, to)      \
           : whole_row<false, S, L>(own, nullptr, r.numel, decay, add_scale, seen, to))
        if (squares && logs) CC_ROW(true, true);
        else if (squares) CC_ROW(true, false);
        else if (logs) CC_ROW(false, true);
        else CC_ROW(false, false);
#undef CC_ROW
        seen.report(r, status);
    }
    return 0;
}

CC_KERNEL(cc_tail_stats,
          (const float* x, int64_t x_numel, float* list, int64_t list_numel, const cc_row* rows, int64_t nrows,
           const float* threshold, double* stats, int first, int squares),
          (x, x_numel, list, list_numel, rows, nrows, threshold, stats, first, squares)) {
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        double* to = stats + FIELDS * i;
        if (threshold[i] != threshold[i]) continue;  // NaN: leave this row alone
        if (r.numel < 0 || r.numel > MAX_NUMEL || !inside(r.x, r.numel, x_numel) || !inside(r.x, r.numel, list_numel))
            return CC_BAD_ROW(i);
        if (!first && !(to[0] >= 0.0 && to[0] <= (double)r.numel)) return CC_BAD_ROW(i);
        const float* from = first ? x + r.x : list + r.x;
        int64_t n = first ? r.numel : (int64_t)to[0];
        squares ? tail<true>(from, n, threshold[i], list + r.x, to) : tail<false>(from, n, threshold[i], list + r.x, to);
    }
    return 0;
}
