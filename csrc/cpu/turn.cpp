// Matrices turned on their way from one buffer to another: to[b][j][i] = from[b][i][j].
#include "rows.h"

namespace {

typedef float F8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t P8 __attribute__((vector_size(32)));
#define CC_PICK(a, b, ...) __builtin_shuffle(a, b, (P8){__VA_ARGS__})

// Eight rows of eight columns through registers: pairs of rows are interleaved, then pairs of pairs, then halves.
CC_INLINE void square(float* to, int64_t to_stride, const float* from, int64_t stride) {
    F8 r[8], t[8];
    for (int k = 0; k < 8; k++) r[k] = *(const F8*)(from + k * stride);
    for (int k = 0; k < 8; k += 2) {
        t[k] = CC_PICK(r[k], r[k + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        t[k + 1] = CC_PICK(r[k], r[k + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int k = 0; k < 8; k += 4)
        for (int h = 0; h < 2; h++) {
            r[k + 2 * h] = CC_PICK(t[k + h], t[k + h + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[k + 2 * h + 1] = CC_PICK(t[k + h], t[k + h + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int k = 0; k < 4; k++) {
        *(F8*)(to + k * to_stride) = CC_PICK(r[k], r[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(F8*)(to + (k + 4) * to_stride) = CC_PICK(r[k], r[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// 64 columns at a time, so that what is written stays in the cache until its lines are full.
CC_INLINE void transpose(float* to, const float* from, int64_t rows, int64_t columns) {
    const int64_t whole = rows / 8 * 8;
    for (int64_t first = 0; first < columns; first += 64) {
        const int64_t end = first + 64 < columns ? first + 64 : columns, even = first + (end - first) / 8 * 8;
        for (int64_t i = 0; i < whole; i += 8) {
            for (int64_t j = first; j < even; j += 8) square(to + j * rows + i, rows, from + i * columns + j, columns);
            for (int64_t j = even; j < end; j++)
                for (int64_t k = i; k < i + 8; k++) to[j * rows + k] = from[k * columns + j];
        }
        for (int64_t i = whole; i < rows; i++)
            for (int64_t j = first; j < end; j++) to[j * rows + i] = from[i * columns + j];
    }
}

}  // namespace

CC_KERNEL(cc_turn,
          (float* to, int64_t to_numel, const float* from, int64_t from_numel, const cc_turned* lines, int64_t nlines),
          (to, to_numel, from, from_numel, lines, nlines)) {
    for (int64_t r = 0; r < nlines; r++) {
        const cc_turned t = lines[r];
        if (t.count == 0) continue;
        if (t.count < 0 || t.rows < 0 || t.columns < 0 || t.rows > MAX_NUMEL || t.columns > MAX_NUMEL) return CC_BAD_ROW(r);
        const int64_t limit = from_numel < to_numel ? from_numel : to_numel;
        if (t.rows && t.columns > limit / t.rows) return CC_BAD_ROW(r);
        const int64_t size = t.rows * t.columns;
        if (size && t.count > limit / size) return CC_BAD_ROW(r);
        if (!inside(t.to, size * t.count, to_numel) || !inside(t.from, size * t.count, from_numel)) return CC_BAD_ROW(r);
        for (int64_t b = 0; b < t.count; b++) transpose(to + t.to + b * size, from + t.from + b * size, t.rows, t.columns);
    }
    return 0;
}
