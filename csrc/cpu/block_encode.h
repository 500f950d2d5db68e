// One encoder for the formats that go block by block: two passes over a block that fits the first-level cache, one pass
// over memory.
//
// A format F has `block` and section(numel), and makes per row an F::Row with
//   Scale measure(Input<ADD>, n, gradient)  the first pass: what the block's n elements need; .ok: they can be coded
//   Scale nothing()                         what codes any finite block as zero
//   void code(Input<ADD>, b, n, scale)      the second pass: block b's scales and codes; leaves y - value in x
//   void finish()                           after the last block: what is still to be written, and the padding
// `F::Row(format, row, r, section)` gets the table's row, its number, and the first byte of its section.
#pragma once
#include "codes.h"
#include "rows.h"

namespace {

template <bool ADD> struct Input {  // y = decay*x + add_scale*add, of one block
    float* x;
    const float* add;
    float decay, add_scale;
};

// Sixteen y, or the first m of them and zeros. The factors are splat once, outside the loop.
template <bool ADD> struct Reader {
    float* x;
    const float* add;
    F16 decay, add_scale;
    explicit Reader(const Input<ADD>& in)
        : x(in.x), add(in.add), decay(splat(in.decay)), add_scale(splat(in.add_scale)) {}
    inline __attribute__((always_inline)) F16 at(int64_t i, int m, I16& gradient) const {
        const F16 a = m == 16 ? load(x + i) : load(x + i, m), b = !ADD ? a : m == 16 ? load(add + i) : load(add + i, m);
        gradient = gradient | bits(b);
        return combine<ADD>(a, b, decay, add_scale);
    }
    inline __attribute__((always_inline)) F16 at(int64_t i, int m) const {
        I16 unused = splat(0);
        return at(i, m, unused);
    }
    inline __attribute__((always_inline)) void leave(int64_t i, int m, F16 left) const {
        if (m == 16) store(x + i, left);
        else store(x + i, left, m);
    }
};

// vector(i, m): the codes of the sixteen elements from i on, of which m are there. Written as bytes, and zeros up to the
// next multiple of 64 elements.
template <class V> CC_INLINE void to_bytes(uint8_t* codes, int64_t count, const V& vector) {
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        I16 c[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) c[v] = vector(i + 16 * v, 16);
        store_u8x64(codes + i, c);
    }
    if (i < count) {
        I16 c[4] = {splat(0), splat(0), splat(0), splat(0)};
        for (int v = 0; i + 16 * v < count; v++) {
            const int64_t j = i + 16 * v;
            c[v] = vector(j, (int)(count - j < 16 ? count - j : 16));
        }
        store_u8x64(codes + i, c);
        memset(codes + count, 0, (size_t)(i + 64 - count));
    }
}

template <bool ADD, class R>
static inline void encode_block(R& row, int64_t b, const Input<ADD>& in, int64_t n, I16& gradient, uint8_t* status) {
    typename R::Scale scale = row.measure(in, n, gradient);
    if (__builtin_expect(scale.ok, 1)) return row.code(in, b, n, scale);
    // Something is not finite, or too large: write the cleaned y over x and look again.
    Seen seen;
    I16 unused = splat(0);
    write_y<ADD>(in.x, in.add, n, in.decay, in.add_scale, seen);
    if (max_lanes(seen.worst) >= INFINITE) status[0] |= 1;
    const Input<false> clean{in.x, nullptr, 1.0f, 1.0f};
    scale = row.measure(clean, n, unused);
    if (!scale.ok) {
        status[0] |= 1;
        scale = row.nothing();
    }
    row.code(clean, b, n, scale);
}

template <class F> static int64_t encode_all(const F& format, CC_ENCODE_PARAMS) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !inside(row.wire, format.section(row.numel), wire_bytes))
            return CC_BAD_ROW(r);
        typename F::Row coder(format, row, r, wire + row.wire);
        float* px = x + row.x;
        const float* pa = add && row.add >= 0 ? add + row.add : nullptr;
        I16 gradient = splat(0);
        for (int64_t b = 0, i = 0; i < row.numel; b++, i += format.block) {
            const int64_t n = row.numel - i < format.block ? row.numel - i : format.block;
            if (pa) encode_block(coder, b, Input<true>{px + i, pa + i, decay, add_scale}, n, gradient, status);
            else encode_block(coder, b, Input<false>{px + i, nullptr, decay, add_scale}, n, gradient, status);
        }
        coder.finish();
        if (or_lanes(gradient) & 0x7fffffff) status[1 + row.index] |= 1;
    }
    return 0;
}

}  // namespace
