// PowerSGD's two products, each in one pass over the matrix, with the gradient added on the way:
//   P = M Q      a few rows at a time against a tile of Q that stays in the first-level cache
//   Q = M^T P    four rows at a time, so that Q, which grows in memory, is touched once for all of them
// Four lines of a factor at once; for a higher rank M is read again, from the cache where it fits.
#include "lowrank.h"

namespace {

constexpr int64_t ROWS = 8, LINES = 4, TILE = 1024, WIDE = 2048;

// sums[k] += y . (line k of Q) over n columns; with ADD y is made first.
template <int K, bool ADD>
CC_INLINE void products(float* x, const float* add, const float* q, int64_t columns, int64_t n, F16* sums, Gather& g) {
    F16 t[K];
#pragma GCC unroll 4
    for (int k = 0; k < K; k++) t[k] = sums[k];
    each_vector(n, [&](int64_t j, int m) __attribute__((always_inline)) {
        const F16 y = ADD ? g(x + j, add + j, m) : load_some(x + j, m);
#pragma GCC unroll 4
        for (int k = 0; k < K; k++) t[k] = t[k] + y * load_some(q + k * columns + j, m);
    });
#pragma GCC unroll 4
    for (int k = 0; k < K; k++) sums[k] = t[k];
}

template <int K, bool ADD>
static inline void project(const cc_matrix& a, float* x, const float* add, int64_t first, int64_t rows, int line,
                           const float* q, float* p, Gather& g) {
    F16 sums[ROWS][K];
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < K; k++) sums[i][k] = splat(0.0f);
    for (int64_t j = 0; j < a.columns; j += TILE) {
        const int64_t n = a.columns - j < TILE ? a.columns - j : TILE;
        for (int i = 0; i < rows; i++) {
            const int64_t at = (first + i) * a.columns + j;
            products<K, ADD>(x + at, ADD ? add + at : nullptr, q + line * a.columns + j, a.columns, n, sums[i], g);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < K; k++) p[(line + k) * a.rows + first + i] = sum_lanes(sums[i][k]);
}

// Lines k of Q, n columns of them, += the products of R rows.
template <int K, int R, bool ADD>
CC_INLINE void grow(float* x, const float* add, int64_t columns, int64_t n, const float* p, int64_t rows, float* q,
                    Gather& g) {
    float factor[K][R];
    for (int k = 0; k < K; k++)
        for (int i = 0; i < R; i++) factor[k][i] = p[k * rows + i];
    each_vector(n, [&](int64_t j, int m) __attribute__((always_inline)) {
        F16 y[R];
#pragma GCC unroll 4
        for (int i = 0; i < R; i++)
            y[i] = ADD ? g(x + i * columns + j, add + i * columns + j, m) : load_some(x + i * columns + j, m);
#pragma GCC unroll 4
        for (int k = 0; k < K; k++) {
            F16 sum = y[0] * splat(factor[k][0]);
#pragma GCC unroll 4
            for (int i = 1; i < R; i++) sum = sum + y[i] * splat(factor[k][i]);
            float* to = q + k * columns + j;
            store_some(to, load_some(to, m) + sum, m);
        }
    });
}

template <int K, bool ADD>
static inline void backproject(const cc_matrix& a, float* x, const float* add, int line, const float* p, float* q,
                               Gather& g) {
    p += line * a.rows, q += line * a.columns;
    memset(q, 0, sizeof(float) * (size_t)(K * a.columns));
    for (int64_t j = 0; j < a.columns; j += WIDE) {
        const int64_t n = a.columns - j < WIDE ? a.columns - j : WIDE;
        int64_t i = 0;
        for (; i + 4 <= a.rows; i += 4) {
            const int64_t at = i * a.columns + j;
            grow<K, 4, ADD>(x + at, ADD ? add + at : nullptr, a.columns, n, p + i, a.rows, q + j, g);
        }
        for (; i < a.rows; i++) {
            const int64_t at = i * a.columns + j;
            grow<K, 1, ADD>(x + at, ADD ? add + at : nullptr, a.columns, n, p + i, a.rows, q + j, g);
        }
    }
}

// use(lines, first line) for the lines of a factor, four at a time; `lines` is a constant.
template <int n> struct Count {
    enum { value = n };
};
template <class F> CC_INLINE void each_lines(int64_t rank, F use) {
    for (int k = 0; k < rank; k += LINES) switch (rank - k) {
            case 1: use(Count<1>(), k); break;
            case 2: use(Count<2>(), k); break;
            case 3: use(Count<3>(), k); break;
            default: use(Count<4>(), k);
        }
}

CC_INLINE bool fits(const cc_matrix& a, int64_t residual_numel, int64_t p_numel, int64_t q_numel, const float* gradient,
                    int64_t gradient_numel, int64_t status_numel) {
    return matrix_fits(a, residual_numel, p_numel, q_numel) && a.index >= 0 && a.index < status_numel - 1 &&
           (!gradient || inside(a.bucket, a.rows * a.columns, gradient_numel));
}

}  // namespace

CC_KERNEL(cc_lowrank_project,
          (CC_LOWRANK_PARAMS, const float* gradient, int64_t gradient_numel, float* p, int64_t p_numel, const float* q,
           int64_t q_numel, uint8_t* status, int64_t status_numel, float scale),
          (CC_LOWRANK_ARGS, gradient, gradient_numel, p, p_numel, q, q_numel, status, status_numel, scale)) {
    for (int64_t r = 0; r < count; r++) {
        const cc_matrix a = matrices[r];
        if (!fits(a, residual_numel, p_numel, q_numel, gradient, gradient_numel, status_numel)) return CC_BAD_ROW(r);
        float* x = residual + a.residual;
        const float* add = gradient ? gradient + a.bucket : nullptr;
        Gather g{splat(scale), {}};
        for (int64_t i = 0; i < a.rows; i += ROWS) {
            const int64_t rows = a.rows - i < ROWS ? a.rows - i : ROWS;
            each_lines(a.rank, [&](auto lines, int k) __attribute__((always_inline)) {
                constexpr int K = decltype(lines)::value;
                if (add && k == 0) project<K, true>(a, x, add, i, rows, k, q + a.q, p + a.p, g);
                else project<K, false>(a, x, nullptr, i, rows, k, q + a.q, p + a.p, g);
            });
        }
        g.report(a.index, status);
    }
    return 0;
}

CC_KERNEL(cc_lowrank_backproject,
          (CC_LOWRANK_PARAMS, const float* gradient, int64_t gradient_numel, const float* p, int64_t p_numel, float* q,
           int64_t q_numel, uint8_t* status, int64_t status_numel, float scale),
          (CC_LOWRANK_ARGS, gradient, gradient_numel, p, p_numel, q, q_numel, status, status_numel, scale)) {
    for (int64_t r = 0; r < count; r++) {
        const cc_matrix a = matrices[r];
        if (!fits(a, residual_numel, p_numel, q_numel, gradient, gradient_numel, status_numel)) return CC_BAD_ROW(r);
        float* x = residual + a.residual;
        const float* add = gradient ? gradient + a.bucket : nullptr;
        Gather g{splat(scale), {}};
        each_lines(a.rank, [&](auto lines, int k) __attribute__((always_inline)) {
            constexpr int K = decltype(lines)::value;
            if (add && k == 0) backproject<K, true>(a, x, add, k, p + a.p, q + a.q, g);
            else backproject<K, false>(a, x, nullptr, k, p + a.p, q + a.q, g);
        });
        g.report(a.index, status);
    }
    return 0;
}
