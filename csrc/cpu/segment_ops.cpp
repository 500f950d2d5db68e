// What feedback schemes do to their memory between a bucket and their slabs, row by row of a table (cc_span).
#include "rows.h"

namespace {

CC_INLINE bool span_fits(const cc_span& r, int64_t to, int64_t from, int64_t status) {
    return r.numel >= 0 && r.numel <= MAX_NUMEL && inside(r.to, r.numel, to) && inside(r.from, r.numel, from) &&
           r.index >= 0 && r.index < status - 1;
}

// to <- alpha*to + beta*from, numbers in `from` that are not finite counting as zero. READ: alpha is not 0.
template <bool READ>
CC_INLINE void axpby(float* to, const float* from, int64_t n, float alpha, float beta, I16& gradient, I16& worst) {
    const F16 a = splat(alpha), b = splat(beta), zero = splat(0.0f);
    const I16 infinite = splat(INFINITE);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        const F16 x = m == 16 ? load(from + i) : load(from + i, m);
        const I16 size = magnitude_bits(x);
        gradient = gradient | size;
        worst = max(worst, size);
        F16 y = b * select(lt(size, infinite), x, zero);
        if (READ) y = a * (m == 16 ? load(to + i) : load(to + i, m)) + y;
        if (m == 16) store(to + i, y);
        else store(to + i, y, m);
    }
}

// x <- x + scale*(eta*error - estimate), numbers in x that are not finite counting as zero.
CC_INLINE void add_correction(float* x, const float* error, const float* estimate, int64_t n, float eta, float scale,
                     I16& worst) {
    const F16 a = splat(eta), b = splat(scale), zero = splat(0.0f);
    const I16 infinite = splat(INFINITE);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        const F16 g = m == 16 ? load(x + i) : load(x + i, m);
        const F16 e = m == 16 ? load(error + i) : load(error + i, m);
        const F16 h = m == 16 ? load(estimate + i) : load(estimate + i, m);
        const I16 size = magnitude_bits(g);
        worst = max(worst, size);
        const F16 y = select(lt(size, infinite), g, zero) + b * (a * e - h);
        if (m == 16) store(x + i, y);
        else store(x + i, y, m);
    }
}

}  // namespace

CC_KERNEL(cc_add_correction,
          (float* x, int64_t x_numel, const float* error, const float* estimate, int64_t numel, const cc_span* rows,
           int64_t nrows, uint8_t* status, int64_t status_numel, float eta, float scale),
          (x, x_numel, error, estimate, numel, rows, nrows, status, status_numel, eta, scale)) {
    I16 worst = splat(0);
    for (int64_t r = 0; r < nrows; r++) {
        const cc_span row = rows[r];
        if (!span_fits(row, x_numel, numel, status_numel)) return CC_BAD_ROW(r);
        add_correction(x + row.to, error + row.from, estimate + row.from, row.numel, eta, scale, worst);
    }
    if (max_lanes(worst) >= INFINITE) status[0] |= 1;
    return 0;
}

CC_KERNEL(cc_axpby,
          (float* to, int64_t to_numel, const float* from, int64_t from_numel, const cc_span* rows, int64_t nrows,
           const float* beta, uint8_t* status, int64_t status_numel, float alpha),
          (to, to_numel, from, from_numel, rows, nrows, beta, status, status_numel, alpha)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_span row = rows[r];
        if (!span_fits(row, to_numel, from_numel, status_numel)) return CC_BAD_ROW(r);
        I16 gradient = splat(0), worst = splat(0);
        if (alpha == 0.0f) axpby<false>(to + row.to, from + row.from, row.numel, alpha, beta[r], gradient, worst);
        else axpby<true>(to + row.to, from + row.from, row.numel, alpha, beta[r], gradient, worst);
        if (max_lanes(worst) >= INFINITE) status[0] |= 1;
        if (or_lanes(gradient)) status[1 + row.index] |= 1;
    }
    return 0;
}

CC_KERNEL(cc_norms,
          (const float* from, int64_t from_numel, const cc_span* rows, int64_t nrows, double* out, int64_t out_numel),
          (from, from_numel, rows, nrows, out, out_numel)) {
    const F16 zero = splat(0.0f);
    const I16 infinite = splat(INFINITE);
    for (int64_t r = 0; r < nrows; r++) {
        const cc_span row = rows[r];
        if (r >= out_numel || !span_fits(row, MAX_NUMEL * 2, from_numel, MAX_NUMEL * 2)) return CC_BAD_ROW(r);
        const float* x = from + row.from;
        double sums[16] = {};
        for (int64_t i = 0; i < row.numel; i += 16) {
            const F16 a = row.numel - i < 16 ? load(x + i, (int)(row.numel - i)) : load(x + i);
            float lanes[16];
            store(lanes, select(lt(magnitude_bits(a), infinite), a, zero));
            for (int l = 0; l < 16; l++) sums[l] += (double)lanes[l] * (double)lanes[l];
        }
        for (int half = 8; half > 0; half /= 2)
            for (int l = 0; l < half; l++) sums[l] += sums[l + half];
        out[r] = __builtin_sqrt(sums[0]);
    }
    return 0;
}

CC_KERNEL(cc_nonzero_segments,
          (const float* from, int64_t from_numel, const cc_span* rows, int64_t nrows, uint8_t* status,
           int64_t status_numel),
          (from, from_numel, rows, nrows, status, status_numel)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_span row = rows[r];
        if (!span_fits(row, MAX_NUMEL * 2, from_numel, status_numel)) return CC_BAD_ROW(r);
        const float* x = from + row.from;
        for (int64_t i = 0; i < row.numel; i++)  // nearly always over at the first element
            if (x[i] != 0.0f) {
                status[1 + row.index] |= 1;
                break;
            }
    }
    return 0;
}
