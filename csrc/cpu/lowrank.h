// Does a matrix and its factors lie inside their tensors?
#pragma once
#include "rows.h"

namespace {

CC_INLINE bool matrix_fits(const cc_matrix& a, int64_t residual_numel, int64_t p_numel, int64_t q_numel) {
    return a.rows > 0 && a.columns > 0 && a.rank > 0 && a.rows <= MAX_NUMEL / a.columns &&
           a.rank <= MAX_NUMEL / a.rows && a.rank <= MAX_NUMEL / a.columns &&
           inside(a.residual, a.rows * a.columns, residual_numel) && inside(a.p, a.rank * a.rows, p_numel) &&
           inside(a.q, a.rank * a.columns, q_numel);
}
CC_INLINE F16 load_some(const float* p, int m) { return m == 16 ? load(p) : load(p, m); }
CC_INLINE void store_some(float* p, F16 a, int m) {
    if (m == 16) store(p, a);
    else store(p, a, m);
}

// use(j, m) for n numbers, sixteen at a time: m is the constant 16, and less for the last.
template <class F> CC_INLINE void each_vector(int64_t n, F use) {
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) use(j, 16);
    if (j < n) use(j, (int)(n - j));
}

// y = x + scale * add, and x where that is not finite.
struct Gather {
    F16 scale;
    Seen seen;
    inline __attribute__((always_inline)) F16 operator()(float* x, const float* add, int m) {
        const F16 a = load_some(x, m), b = load_some(add, m), y = a + scale * b;
        const I16 size = magnitude_bits(y);
        seen.gradient = seen.gradient | bits(b);
        seen.worst = max(seen.worst, size);
        const F16 kept = select(lt(size, splat(INFINITE)), y, a);
        store_some(x, kept, m);
        return kept;
    }
    void report(int64_t index, uint8_t* status) const {
        if (max_lanes(seen.worst) >= INFINITE) status[0] |= 1;
        if (or_lanes(seen.gradient) & 0x7fffffff) status[1 + index] |= 1;
    }
};

}  // namespace
