// Gaussian sketch: y_i = sum_j t_ij x_j / sqrt k, decoded as x_j = sum_i t_ij y_i / sqrt k. t_ij is the quantile whose
// number is the 16-bit dither of element j, with i in the place of the rank, from stream 4. For study: d*k products.
#include <math.h>

#include "dither.h"
#include "sketch.h"

namespace {

constexpr int64_t TILE = 512;

struct Line {  // row i of the matrix
    Dither dither;
    const float* quantiles;
    Line(const cc_row& r, int64_t step, int64_t i, const float* q) : dither(r.key, step, i, 4), quantiles(q) {}
    // t for m <= 16 elements from element j of the parameter on; zeros after them.
    F16 at(int64_t j, int m, int64_t end) {
        const float* u = dither.get(j, m, end);
        float t[16] = {};
        for (int l = 0; l < m; l++) t[l] = quantiles[(int)(u[l] * 65536.0f)];  // u is (number + 1/2) / 65536
        return load(t);
    }
};

CC_INLINE int lanes_left(int64_t i, int64_t n) { return (int)(n - i < 16 ? n - i : 16); }
CC_INLINE F16 load_some(const float* p, int m) { return m == 16 ? load(p) : load(p, m); }

CC_INLINE float product(const cc_row& r, int64_t step, int64_t i, const float* quantiles, const float* x) {
    Line line(r, step, i, quantiles);
    F16 sum = splat(0.0f);
    for (int64_t e = 0; e < r.numel; e += 16) {
        const int m = lanes_left(e, r.numel);
        sum = sum + line.at(r.offset + e, m, r.offset + r.numel) * load_some(x + e, m);
    }
    return sum_lanes(sum);
}

// v <- the decoded elements first .. first + n - 1 of one message, n <= TILE.
CC_INLINE void decoded(const cc_row& r, int64_t step, const float* quantiles, const uint8_t* sums, int64_t first,
                       int64_t n, float* v) {
    memset(v, 0, TILE * sizeof(float));
    for (int64_t i = 0; i < r.k; i++) {
        Line line(r, step, i, quantiles);
        float y;
        memcpy(&y, sums + 4 * i, 4);
        const int64_t at = r.offset + first;
        for (int64_t e = 0; e < n; e += 16)
            store(v + e, load(v + e) + line.at(at + e, lanes_left(e, n), at + n) * splat(y));
    }
    const F16 c = splat((float)(1.0 / sqrt((double)r.k)));
    for (int64_t e = 0; e < n; e += 16) store(v + e, load(v + e) * c);
}

}  // namespace

CC_KERNEL(cc_gauss_encode, (CC_ENCODE_PARAMS, const float* gain, const float* quantiles, int64_t step),
          (CC_ENCODE_ARGS, gain, quantiles, step)) {
    alignas(64) float v[TILE];
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!sums_valid(r) || !encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, 4 * r.k, true))
            return CC_BAD_ROW(i);
        float* y = x + r.x;
        uint8_t* sums = wire + r.wire;
        if (!sketch_input(r, y, r.add >= 0 ? add + r.add : nullptr, sums, status, decay, add_scale)) continue;
        const float c = (float)(1.0 / sqrt((double)r.k)) * gain[i];
        for (int64_t s = 0; s < r.k; s++) {
            const float total = product(r, step, s, quantiles, y) * c;
            memcpy(sums + 4 * s, &total, 4);
        }
        for (int64_t first = 0; first < r.numel; first += TILE) {
            const int64_t n = r.numel - first < TILE ? r.numel - first : TILE;
            decoded(r, step, quantiles, sums, first, n, v);
            for (int64_t e = 0; e < n; e++) y[first + e] -= v[e];
        }
    }
    return 0;
}

CC_KERNEL(cc_gauss_decode, (CC_DECODE_PARAMS, const float* quantiles, int64_t step),
          (CC_DECODE_ARGS, quantiles, step)) {
    alignas(64) float v[TILE], total[TILE];
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1) continue;
        if (!sums_valid(r) || !decode_row_fits(r, out_numel, wire_bytes, skip_numel, 4 * r.k)) return CC_BAD_ROW(i);
        float* own = out + r.x;
        if (skip[r.index]) {
            if (!accumulate) memset(own, 0, sizeof(float) * (size_t)r.numel);
            continue;
        }
        for (int64_t first = 0; first < r.numel; first += TILE) {
            const int64_t n = r.numel - first < TILE ? r.numel - first : TILE;
            decoded(r, step, quantiles, wires + r.wire, first, n, total);
            for (int64_t m = 1; m < messages; m++) {
                decoded(r, step, quantiles, wires + m * stride + r.wire, first, n, v);
                for (int64_t e = 0; e < n; e++) total[e] = total[e] + v[e];
            }
            for (int64_t e = 0; e < n; e++) {
                const float value = total[e] * scale;
                own[first + e] = accumulate ? own[first + e] + value : value;
            }
        }
    }
    return 0;
}
