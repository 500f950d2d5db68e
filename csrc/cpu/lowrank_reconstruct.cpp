// out = scale * P Q^T into the gradient's bucket and M <- M - sign * P' Q'^T, in one pass over both. An element is
// p_0 q_0 + p_1 q_1 + ... in that order, so that all ranks hold the same bits whatever their processors.
#include "lowrank.h"

namespace {

constexpr int64_t ROWS = 8, TILE = 1024;

struct Factors {  // of one matrix
    const float *p, *q;
};

// Row `row` of P Q^T, from column `from` on: the K numbers of P are kept in registers (K = 0: any rank, read again).
template <int K> struct Line {
    F16 p[K ? K : 1];
    const float *first, *q;
    int64_t rows, columns, rank;
    static Line make(const cc_matrix& a, const Factors& f, int64_t row, int64_t from) {
        Line line{{}, f.p + row, f.q + from, a.rows, a.columns, a.rank};
#pragma GCC unroll 4
        for (int k = 0; k < K; k++) line.p[k] = splat(line.first[k * a.rows]);
        return line;
    }
    inline __attribute__((always_inline)) F16 at(int64_t j, int m) const {
        F16 v = (K ? p[0] : splat(first[0])) * load_some(q + j, m);
        if (K) {
#pragma GCC unroll 4
            for (int k = 1; k < K; k++) v = v + p[k] * load_some(q + k * columns + j, m);
        } else {
            for (int64_t k = 1; k < rank; k++) v = v + splat(first[k * rows]) * load_some(q + k * columns + j, m);
        }
        return v;
    }
};

template <int K, bool OUT, bool ACCUMULATE, bool SAME>
static inline void rebuild(const cc_matrix& a, float* x, float* out, const Factors& mean, const Factors& sent,
                           F16 scale, F16 sign) {
    for (int64_t first = 0; first < a.rows; first += ROWS)
        for (int64_t from = 0; from < a.columns; from += TILE)
            for (int64_t i = first; i < a.rows && i < first + ROWS; i++) {
                const int64_t n = a.columns - from < TILE ? a.columns - from : TILE;
                float *row = x + i * a.columns + from, *to = OUT ? out + i * a.columns + from : nullptr;
                const Line<K> line = Line<K>::make(a, mean, i, from);
                const Line<K> own = SAME ? line : Line<K>::make(a, sent, i, from);
                each_vector(n, [&](int64_t j, int m) __attribute__((always_inline)) {
                    const F16 v = line.at(j, m), w = SAME ? v : own.at(j, m);
                    const F16 left = load_some(row + j, m) - w * sign;
                    if (OUT) store_some(to + j, ACCUMULATE ? load_some(to + j, m) + v * scale : v * scale, m);
                    store_some(row + j, left, m);
                });
            }
}

template <int K>
static inline void rebuild(const cc_matrix& a, float* x, float* out, bool accumulate, const Factors& mean,
                           const Factors& sent, float scale, float sign) {
    const F16 s = splat(scale), t = splat(sign);
    const bool same = mean.p == sent.p && mean.q == sent.q;
    if (!out) rebuild<K, false, false, true>(a, x, nullptr, sent, sent, s, t);
    else if (accumulate) rebuild<K, true, true, false>(a, x, out, mean, sent, s, t);
    else if (same) rebuild<K, true, false, true>(a, x, out, mean, sent, s, t);
    else rebuild<K, true, false, false>(a, x, out, mean, sent, s, t);
}

}  // namespace

CC_KERNEL(cc_lowrank_reconstruct,
          (CC_LOWRANK_PARAMS, float* out, int64_t out_numel, const float* p, int64_t p_numel, const float* q,
           int64_t q_numel, const float* p_sent, const float* q_sent, const uint8_t* skip, int64_t skip_numel,
           float scale, int accumulate, float sign),
          (CC_LOWRANK_ARGS, out, out_numel, p, p_numel, q, q_numel, p_sent, q_sent, skip, skip_numel, scale,
           accumulate, sign)) {
    for (int64_t r = 0; r < count; r++) {
        const cc_matrix a = matrices[r];
        const int64_t numel = a.rows * a.columns;
        if (!matrix_fits(a, residual_numel, p_numel, q_numel) || a.index < 0 || a.index >= skip_numel ||
            (out && a.bucket != -1 && !inside(a.bucket, numel, out_numel)))
            return CC_BAD_ROW(r);
        float* to = out && a.bucket >= 0 ? out + a.bucket : nullptr;
        if (skip[a.index]) {
            if (to && !accumulate) memset(to, 0, sizeof(float) * (size_t)numel);
            continue;
        }
        float* x = residual + a.residual;
        const Factors mean{p + a.p, q + a.q}, sent{p_sent + a.p, q_sent + a.q};
        switch (a.rank) {
            case 1: rebuild<1>(a, x, to, accumulate, mean, sent, scale, sign); break;
            case 2: rebuild<2>(a, x, to, accumulate, mean, sent, scale, sign); break;
            case 4: rebuild<4>(a, x, to, accumulate, mean, sent, scale, sign); break;
            default: rebuild<0>(a, x, to, accumulate, mean, sent, scale, sign);
        }
    }
    return 0;
}
