// One decoder for all dense formats:  acc = v_0 + v_1 + ... in message order;  out = acc*scale  or  out + acc*scale.
//
// A format F says how many bytes a row takes, how long its blocks are, and gives per (message, tile) a Source whose
// at(i) is the sixteen values from element i of the tile. Up to four messages are summed in registers; with more, the
// sums wait in a tile that fits the first-level cache, so `out` is touched once however many messages there are.
#pragma once
#include "rows.h"

namespace {

constexpr int64_t TILE = 512;  // elements per tile
constexpr int GROUP = 4;       // messages per sweep

template <int G, bool FIRST, bool LAST, bool ADD, class S>
CC_INLINE void sweep(const S* sources, float* acc, float* out, int64_t n, F16 scale) {
    S s[G];
    for (int g = 0; g < G; g++) s[g] = sources[g];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        F16 a = s[0].at(i);
        if (!FIRST) a = load(acc + i) + a;
#pragma GCC unroll 4
        for (int g = 1; g < G; g++) a = a + s[g].at(i);
        if (!LAST) store(acc + i, a);
        else store(out + i, ADD ? load(out + i) + a * scale : a * scale);
    }
    if (i < n) {
        int m = (int)(n - i);
        F16 a = s[0].tail(i, m);
        if (!FIRST) a = load(acc + i) + a;
#pragma GCC unroll 4
        for (int g = 1; g < G; g++) a = a + s[g].tail(i, m);
        if (!LAST) store(acc + i, a);
        else store(out + i, ADD ? load(out + i, m) + a * scale : a * scale, m);
    }
}

template <int G, bool ADD, class S>
static inline void sweep_any(const S* s, float* acc, float* out, int64_t n, F16 scale, bool first, bool last) {
    if (first && last) sweep<G, true, true, ADD>(s, acc, out, n, scale);
    else if (last) sweep<G, false, true, ADD>(s, acc, out, n, scale);
    else if (G == GROUP && first) sweep<GROUP, true, false, ADD>(s, acc, out, n, scale);
    else if (G == GROUP) sweep<GROUP, false, false, ADD>(s, acc, out, n, scale);
}

template <bool ADD, class F> static int64_t decode_rows(const F& format, CC_DECODE_PARAMS) {
    (void)accumulate;
    const F16 factor = splat(scale);
    alignas(64) float acc[TILE];
    typename F::Scratch scratch[GROUP];
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (row.x == -1) continue;
        if (!decode_row_fits(row, out_numel, wire_bytes, skip_numel, 0) ||
            !inside(row.wire, format.section(row.numel), wire_bytes))
            return CC_BAD_ROW(r);
        float* o = out + row.x;
        if (skip[row.index]) {
            if (!ADD) memset(o, 0, 4 * (size_t)row.numel);
            continue;
        }
        const int64_t length = format.block ? format.block : row.numel,
                      blocks = length ? ceil_div(row.numel, length) : 0;
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t end = (b + 1) * length < row.numel ? (b + 1) * length : row.numel;
            for (int64_t first = b * length; first < end; first += TILE) {
                const int64_t n = end - first < TILE ? end - first : TILE;
                for (int64_t m = 0; m < messages; m += GROUP) {
                    const int g = (int)(messages - m < GROUP ? messages - m : GROUP);
                    typename F::Source s[GROUP];
                    for (int i = 0; i < g; i++)
                        s[i] = format.source(wires + (m + i) * stride + row.wire, blocks, b, first, n, scratch[i]);
                    const bool head = m == 0, tail = m + g == messages;
                    if (g == 1) sweep_any<1, ADD>(s, acc, o + first, n, factor, head, tail);
                    else if (g == 2) sweep_any<2, ADD>(s, acc, o + first, n, factor, head, tail);
                    else if (g == 3) sweep_any<3, ADD>(s, acc, o + first, n, factor, head, tail);
                    else sweep_any<4, ADD>(s, acc, o + first, n, factor, head, tail);
                }
            }
        }
    }
    return 0;
}

template <class F> static int64_t decode_all(const F& format, CC_DECODE_PARAMS) {
    return accumulate ? decode_rows<true>(format, CC_DECODE_ARGS) : decode_rows<false>(format, CC_DECODE_ARGS);
}

struct NoScratch {};

// Reads count bytes of a short tail without touching what follows them.
template <int BYTES> struct Bytes {
    uint8_t b[BYTES];
};
template <int BYTES> CC_INLINE Bytes<BYTES> read_tail(const uint8_t* p, int count) {
    Bytes<BYTES> t = {};
    memcpy(t.b, p, (size_t)count);
    return t;
}

}  // namespace
