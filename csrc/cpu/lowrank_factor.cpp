// The factors of PowerSGD, each matrix's on its own: Gram-Schmidt, and fresh lines where one is zero.
#include <math.h>

#include "dither.h"
#include "lowrank.h"
#include "scratch.h"

namespace {

constexpr int WAYS = 8;
constexpr double KEPT = 1e-12;  // of a square norm: what is less is rounding

// Sums of WAYS interleaved parts, then halved 4, 2, 1 apart: the same bits with any vector length. n: a multiple.
CC_INLINE double dot(const double* a, const double* b, int64_t n) {
    double t[WAYS] = {};
    for (int64_t i = 0; i < n; i += WAYS)
        for (int l = 0; l < WAYS; l++) t[l] = t[l] + a[i + l] * b[i + l];
    for (int half = WAYS / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) t[l] = t[l] + t[l + half];
    return t[0];
}

// Makes `lines` lines of n numbers orthonormal; v holds them all, padded with zeros, in double precision.
static inline void orthonormal(float* factor, int64_t n, int64_t lines, double* v, int64_t padded) {
    for (int64_t k = 0; k < lines; k++) {
        double* a = v + k * padded;
        for (int64_t i = 0; i < n; i++) a[i] = (double)factor[k * n + i];
        for (int64_t i = n; i < padded; i++) a[i] = 0.0;
        const double before = dot(a, a, padded);
        for (int64_t j = 0; j < k; j++) {
            const double* b = v + j * padded;
            const double c = dot(a, b, padded);
            for (int64_t i = 0; i < padded; i++) a[i] = a[i] - c * b[i];
        }
        const double after = dot(a, a, padded), size = sqrt(after);
        const bool kept = after > before * KEPT;  // false for NaN, and for zero
        for (int64_t i = 0; i < padded; i++) a[i] = kept ? a[i] / size : 0.0;
        for (int64_t i = 0; i < n; i++) factor[k * n + i] = (float)a[i];
    }
}

CC_INLINE bool factor_fits(const cc_row& r, int64_t numel) {
    return r.numel > 0 && r.k > 0 && r.k <= MAX_NUMEL / r.numel && inside(r.x, r.k * r.numel, numel);
}

}  // namespace

CC_KERNEL(cc_lowrank_orthonormal, (float* factor, int64_t numel, const cc_row* rows, int64_t nrows),
          (factor, numel, rows, nrows)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row& row = rows[r];
        if (!factor_fits(row, numel)) return CC_BAD_ROW(r);
        const int64_t padded = ceil_div(row.numel, WAYS) * WAYS;
        double* v = (double*)scratch(sizeof(double) * (size_t)(padded * row.k));
        if (!v) return CC_NO_MEMORY;
        orthonormal(factor + row.x, row.numel, row.k, v, padded);
    }
    return 0;
}

CC_KERNEL(cc_lowrank_refresh,
          (float* factor, int64_t numel, const cc_row* rows, int64_t nrows, const float* quantiles, int64_t step),
          (factor, numel, rows, nrows, quantiles, step)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row& row = rows[r];
        if (!factor_fits(row, numel)) return CC_BAD_ROW(r);
        for (int64_t k = 0; k < row.k; k++) {
            float* line = factor + row.x + k * row.numel;
            int64_t i = 0;
            while (i < row.numel && line[i] == 0.0f) i++;
            if (i < row.numel) continue;
            Dither dither(row.key, step, k, 6);
            for (i = 0; i < row.numel; i += 512) {
                const int64_t n = row.numel - i < 512 ? row.numel - i : 512;
                const float* u = dither.get(i, n, row.numel);
                for (int64_t l = 0; l < n; l++) line[i + l] = quantiles[(int)(u[l] * 65536.0f)];
            }
        }
    }
    return 0;
}
