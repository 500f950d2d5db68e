// QSGD in Elias codes, back into floats. The bits come from a peer: no read leaves the section, no level exceeds s, no
// gap leaves its block, and the stream ends where the section says. A row's messages are summed in scratch memory, in
// rank order, and the row is written only when all of them were found true.
#include "omega.h"
#include "quantise.h"
#include "scratch.h"

namespace {

enum : int { LOOKUP = 12, CENTRE = 128 };  // an Elias-coded level is decoded to the byte q + CENTRE
enum : int64_t { SLACK = 64 };             // bytes behind a block's codes that may be written, and read

struct Dense {
    uint8_t levels[3], count_length;  // up to three levels; their number in the high half (0: a word beyond LOOKUP)
};
struct Sparse {
    uint8_t gap, level, length;  // one gap and its level; length 0: words beyond LOOKUP
};
struct Tables {  // what the next LOOKUP bits of a stream begin with
    Dense dense[1 << LOOKUP];
    Sparse sparse[1 << LOOKUP];
};
static Tables tables;
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static int level_byte(uint64_t size, bool negative) { return negative ? CENTRE - (int)size : CENTRE + (int)size; }

// One level as the byte q + CENTRE, at least 1; 0 when there is none up to MAX_LEVEL.
static int read_dense(BitReader& in) {
    const uint64_t k = in.omega();
    if (k == 0 || k > MAX_LEVEL + 1) return 0;
    return level_byte(k - 1, k > 1 && in.bit());
}
static int read_sparse(BitReader& in) {
    const bool negative = in.bit();
    const uint64_t k = in.omega();
    return k == 0 || k > MAX_LEVEL ? 0 : level_byte(k, negative);
}

static void make_tables() {
    for (uint32_t v = 0; v < 1 << LOOKUP; v++) {
        const uint8_t bytes[8] = {(uint8_t)v, (uint8_t)(v >> 8)};
        BitReader in{bytes, 8, 0};
        Dense d{{CENTRE, CENTRE, CENTRE}, 0};
        for (int i = 0; i < 3; i++) {
            const int level = read_dense(in);
            if (!level || in.at > LOOKUP) break;
            d.levels[i] = (uint8_t)level;
            d.count_length = (uint8_t)((i + 1) << 4 | (int)in.at);
        }
        tables.dense[v] = d;
        in.at = 0;
        const uint64_t gap = in.omega();
        const int level = gap && gap < SHORT_GAP ? read_sparse(in) : 0;
        if (level && in.at <= LOOKUP) tables.sparse[v] = {(uint8_t)gap, (uint8_t)level, (uint8_t)in.at};
    }
}

// n levels to bytes; false when the bits cannot be true. `in` may end up behind its last byte.
static bool take_dense(BitReader& in, int64_t n, uint8_t* out) {
    int64_t i = 0;
    while (i + 12 <= n) {  // four look-ups of up to three levels each from one word
        uint64_t w = in.peek();
        int64_t done = 0;
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const Dense d = tables.dense[w & ones(LOOKUP)];
            memcpy(out + i, d.levels, 4);  // the fourth byte is overwritten by the next levels
            i += d.count_length >> 4;
            done += d.count_length & 15;
            w >>= d.count_length & 15;
        }
        in.at += done;
        if (i == n || tables.dense[w & ones(LOOKUP)].count_length) continue;
        if (!(out[i++] = (uint8_t)read_dense(in))) return false;  // a long word stands next
    }
    for (; i < n; i++)
        if (!(out[i] = (uint8_t)read_dense(in))) return false;
    return true;
}
static bool take_sparse(BitReader& in, int64_t n, uint8_t* out) {
    memset(out, CENTRE, (size_t)n);
    for (int64_t at = -1;;) {
        const Sparse s = tables.sparse[in.peek() & ones(LOOKUP)];
        if (s.length && at + s.gap < n) {
            at += s.gap;
            out[at] = s.level;
            in.at += s.length;
            continue;
        }
        const uint64_t gap = in.omega();
        if (!gap || (int64_t)gap > n - at) return false;
        at += (int64_t)gap;
        if (at == n) return true;
        if (!(out[at] = (uint8_t)read_sparse(in))) return false;
    }
}
static bool take_fixed(BitReader& in, int64_t n, int bits, uint8_t* out) {
    if (n * bits > 8 * in.bytes - in.at) return false;
    const int shift = (int)(in.at & 7);
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t count = n - first < TILE ? n - first : TILE;
        uint8_t stream[TILE + 24];
        memcpy(stream, in.p + (in.at >> 3), (size_t)(shift + count * bits + 7) / 8);
        for (int64_t i = 0; shift && i < ceil_div(count * bits, 8); i += 7) {
            uint64_t w;
            memcpy(&w, stream + i, 8);
            w >>= shift;
            memcpy(stream + i, &w, 7);
        }
        if (bits == 4) unpack_codes<4>(stream, count, out + first);
        else if (bits == 8) memcpy(out + first, stream, (size_t)count);
        else unpack_codes(bits, stream, count, out + first);
        in.at += count * bits;
    }
    return true;
}

// total = (total +) q * step over a block; the largest and least q are kept.
template <bool FIRST>
CC_INLINE void add_block(const uint8_t* codes, int64_t n, int centre, float step, float* total, I16& most, I16& least) {
    const F16 size = splat(step);
    const I16 zero = splat(centre);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        I16 q = load_u8(codes + i) - zero;
        most = max(most, q), least = min(least, q);
        F16 value = to_float(q) * size;
        if (m == 16) store(total + i, FIRST ? value : load(total + i) + value);
        else store(total + i, FIRST ? value : load(total + i, m) + value, m);
    }
}

static bool add_message(const uint8_t* section, int64_t numel, const Setting& set, bool first_message, uint8_t* codes,
                        float* total) {
    const int64_t blocks = ceil_div(numel, set.block);
    uint32_t used;
    memcpy(&used, section, 4);
    if (used % 4 || used < elias_stream_at(blocks) || used > elias_capacity(numel, set.bits, set.block)) return false;
    const uint8_t* forms = section + elias_forms_at(blocks);
    BitReader in{section, used, 8 * elias_stream_at(blocks)};
    I16 most = splat(0), least = splat(0);
    for (int64_t b = 0, i = 0; b < blocks; b++, i += set.block) {
        const int64_t n = numel - i < set.block ? numel - i : set.block;
        const int form = forms[b / 4] >> b % 4 * 2 & 3;
        const bool fine = form == FIXED    ? take_fixed(in, n, set.bits, codes)
                          : form == DENSE  ? take_dense(in, n, codes)
                          : form == SPARSE ? take_sparse(in, n, codes)
                                           : (memset(codes, CENTRE, (size_t)n), true);
        if (!fine || in.at > 8 * in.bytes) return false;
        memset(codes + n, form == FIXED ? set.levels : CENTRE, 16);  // what the last vector reads beyond the block
        float step;
        memcpy(&step, section + 4 + 4 * b, 4);
        const int centre = form == FIXED ? set.levels : (int)CENTRE;
        if (first_message) add_block<true>(codes, n, centre, step, total + i, most, least);
        else add_block<false>(codes, n, centre, step, total + i, most, least);
    }
    if (max_lanes(most) > set.levels || max_lanes(splat(0) - least) > set.levels) return false;
    return pad4(ceil_div(in.at, 8)) == used;
}

static void write_row(const float* total, int64_t n, float scale, bool accumulate, float* out) {
    const F16 factor = splat(scale);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        const F16 value = load(total + i) * factor;
        if (m == 16) store(out + i, accumulate ? load(out + i) + value : value);
        else store(out + i, accumulate ? load(out + i, m) + value : value, m);
    }
}

}  // namespace

CC_KERNEL(cc_elias_decode, (CC_DECODE_PARAMS, int bits, int levels, int64_t block),
          (CC_DECODE_ARGS, bits, levels, block)) {
    if (!sensible(bits, levels, block)) return CC_BAD_PARAMETER;
    pthread_once(&tables_once, make_tables);
    const Setting set{bits, levels, block};
    int64_t longest = 0;
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row& row = rows[r];
        if (row.x == -1) continue;
        if (!decode_row_fits(row, out_numel, wire_bytes, skip_numel, 0) ||
            !elias_fits(row, bits, block, wire_bytes))
            return CC_BAD_ROW(r);
        if (row.numel > longest) longest = row.numel;
    }
    const int64_t floats = (longest + 31) & ~(int64_t)15;
    float* total = (float*)scratch((size_t)(4 * floats + (longest < block ? longest : block) + SLACK));
    if (!total) return CC_NO_MEMORY;
    uint8_t* codes = (uint8_t*)(total + floats);
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row& row = rows[r];
        if (row.x == -1 || row.numel == 0) continue;
        if (skip[row.index]) {
            if (!accumulate) memset(out + row.x, 0, 4 * (size_t)row.numel);
            continue;
        }
        for (int64_t m = 0; m < messages; m++)
            if (!add_message(wires + m * stride + row.wire, row.numel, set, m == 0, codes, total))
                return 1 + m * nrows + r;
        write_row(total, row.numel, scale, accumulate != 0, out + row.x);
    }
    return 0;
}
