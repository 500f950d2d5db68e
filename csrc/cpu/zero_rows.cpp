// Which rows of a matrix are zero, and zeros for those that are.
#include "rows.h"

namespace {

CC_INLINE int64_t count_of(const cc_row& r) { return r.numel ? ceil_div(r.offset + r.numel, r.k) : 0; }

CC_INLINE bool line_fits(const cc_row& r, int64_t nbytes) {
    return r.numel >= 0 && r.numel <= MAX_NUMEL && r.k > 0 && r.k <= MAX_NUMEL && r.offset >= 0 && r.offset < r.k &&
           inside(r.wire, 4 * ceil_div(count_of(r), 32), nbytes);
}

CC_INLINE uint32_t size_bits(const float* p) {
    uint32_t b;
    memcpy(&b, p, 4);
    return b & 0x7fffffffu;
}

// Whether n elements are all zero. A row that is not says so in its first element as a rule: one line of it is read.
CC_INLINE bool all_zero(const float* p, int64_t n) {
    for (int64_t i = 0; i < n && i < 4; i++)
        if (size_bits(p + i)) return false;
    for (int64_t i = 4; i < n;) {
        const int64_t stop = i + 64 <= n ? i + 64 : n;
        uint32_t seen = 0;
        for (; i < stop; i++) seen |= size_bits(p + i);
        if (seen) return false;
    }
    return true;
}

}  // namespace

CC_KERNEL(cc_zero_rows_mark,
          (const float* x, int64_t x_numel, const float* add, int64_t add_numel, uint8_t* bits, int64_t nbytes,
           const cc_row* rows, int64_t nrows),
          (x, x_numel, add, add_numel, bits, nbytes, rows, nrows)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        const bool has_x = x && row.x >= 0, has_add = add && row.add >= 0;
        if (!line_fits(row, nbytes) || (has_x && !inside(row.x, row.numel, x_numel)) ||
            (has_add && !inside(row.add, row.numel, add_numel)))
            return CC_BAD_ROW(r);
        const int64_t count = count_of(row);
        uint8_t* out = bits + row.wire;
        memset(out, 0, (size_t)(4 * ceil_div(count, 32)));
        for (int64_t j = 0; j < count; j++) {
            const int64_t first = j ? j * row.k - row.offset : 0, end = (j + 1) * row.k - row.offset;
            const int64_t n = (end < row.numel ? end : row.numel) - first;
            // the gradient first: of the two it is the one that has rows of zeros
            if (has_add && j + 16 < count) __builtin_prefetch(add + row.add + first + 16 * row.k);
            if ((!has_add || all_zero(add + row.add + first, n)) && (!has_x || all_zero(x + row.x + first, n)))
                out[j >> 3] |= (uint8_t)(1u << (j & 7));
        }
    }
    return 0;
}

CC_KERNEL(cc_zero_rows_clear,
          (float* to, int64_t to_numel, const uint8_t* bits, int64_t nbytes, const cc_row* rows, int64_t nrows),
          (to, to_numel, bits, nbytes, rows, nrows)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (!line_fits(row, nbytes) || (row.x >= 0 && !inside(row.x, row.numel, to_numel))) return CC_BAD_ROW(r);
        if (row.x < 0) continue;
        const int64_t count = count_of(row);
        const uint8_t* in = bits + row.wire;
        for (int64_t j = 0; j < count; j++) {
            if (!in[j >> 3]) {
                j |= 7;  // eight rows at once have nothing to clear
                continue;
            }
            if (!(in[j >> 3] >> (j & 7) & 1)) continue;
            const int64_t first = j ? j * row.k - row.offset : 0, end = (j + 1) * row.k - row.offset;
            memset(to + row.x + first, 0, 4 * (size_t)((end < row.numel ? end : row.numel) - first));
        }
    }
    return 0;
}
