// QSGD with codes of fixed width (quantise.h has the arithmetic): steps, then codes q + levels.
#include "quantise.h"

namespace {

CC_INLINE int64_t section_bytes(int64_t numel, int bits, int64_t block) {
    return 4 * ceil_div(numel, block) + pad4(ceil_div(numel * bits, 8));
}

template <bool NORM2, bool STOCHASTIC>
int64_t encode(CC_ENCODE_PARAMS, const float* gain, const Setting& set, int64_t step, int64_t rank) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        // Without add its column is not read, whatever it says: places and lengths are below MAX_NUMEL each.
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !inside(row.wire, section_bytes(row.numel, set.bits, set.block), wire_bytes))
            return CC_BAD_ROW(r);
        const int64_t blocks = ceil_div(row.numel, set.block), bytes = ceil_div(row.numel * set.bits, 8);
        uint8_t *steps = wire + row.wire, *codes = steps + 4 * blocks;
        float* px = x + row.x;
        const float* pa = add && row.add >= 0 ? add + row.add : nullptr;
        I16 gradient = splat(0);
        Dither dither(row.key, step, rank);
        const int64_t end = row.offset + row.numel;
        for (int64_t b = 0, i = 0; b < blocks; b++, i += set.block) {
            const int64_t n = row.numel - i < set.block ? row.numel - i : set.block;
            uint8_t* out = codes + i * set.bits / 8;
            const float size =
                pa ? encode_block<true, NORM2, STOCHASTIC>(px + i, pa + i, n, decay, add_scale, gain[r], set, &dither,
                                                           row.offset + i, end, out, gradient, status)
                   : encode_block<false, NORM2, STOCHASTIC>(px + i, nullptr, n, decay, add_scale, gain[r], set, &dither,
                                                            row.offset + i, end, out, gradient, status);
            memcpy(steps + 4 * b, &size, 4);
        }
        // What pads the codes is sent too: a message is the same to the bit whatever the buffer held.
        memset(codes + bytes, 0, (size_t)(pad4(bytes) - bytes));
        // A gradient of -0.0 is none: only the sign is set.
        if (or_lanes(gradient) & 0x7fffffff) status[1 + row.index] |= 1;
    }
    return 0;
}

struct ByteCodes {  // codes as bytes: in the wire itself (8 bits), or unpacked into the scratch tile
    F16 step;
    I16 levels;
    const uint8_t* p;
    inline F16 value(I16 c) const { return to_float(c - levels) * step; }
    inline F16 at(int64_t i) const { return value(load_u8(p + i)); }
    inline F16 tail(int64_t i, int n) const { return value(load_u8(read_tail<16>(p + i, n).b)); }
};

#if CC_ISA > 0
struct StreamCodes {  // codes of any width, from a copy of the tile that may be read past its end
    F16 step;
    I16 levels;
    StreamReader reader;
    const uint8_t* p;
    inline F16 at(int64_t i) const { return to_float(reader.read(p + i / 8 * reader.width) - levels) * step; }
    inline F16 tail(int64_t i, int) const { return at(i); }
};
#endif

struct NibbleCodes {
    const uint8_t* p;
#if CC_ISA == 2
    F16 table;  // the sixteen values; the permutation reads only the low four bits of a lane
    inline F16 at(int64_t i) const {
        __m512i v = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)(p + i / 2)));
        return {_mm512_permutexvar_ps(_mm512_or_si512(v, _mm512_slli_epi64(v, 28)), table.v)};
    }
#else
    F16 step;
    I16 levels;
    inline F16 at(int64_t i) const { return to_float(load_nibbles(p + i / 2) - levels) * step; }
#endif
    inline F16 tail(int64_t i, int n) const {
        const Bytes<8> b = read_tail<8>(p + i / 2, (n + 1) / 2);
        NibbleCodes copy = *this;
        copy.p = b.b;
        return copy.at(0);
    }
};

struct Format : Setting {
    int64_t section(int64_t numel) const { return section_bytes(numel, bits, block); }
    const uint8_t* codes(const uint8_t* section, int64_t blocks, int64_t first) const {
        return section + 4 * blocks + first * bits / 8;
    }
    CC_INLINE float step(const uint8_t* section, int64_t b) {
        float s;
        memcpy(&s, section + 4 * b, 4);
        return s;
    }
};
struct Scratched {
    uint8_t codes[TILE + 16];  // vectors are read whole, past the last code too
};
#if CC_ISA > 0
struct Streamwise : Format {
    StreamReader reader;
    explicit Streamwise(const Setting& set) : Format{set}, reader(set.bits) {}
    typedef Scratched Scratch;
    typedef StreamCodes Source;
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        memcpy(scratch.codes, codes(section, blocks, first), (size_t)ceil_div(n * bits, 8));
        return {splat(step(section, b)), splat(levels), reader, scratch.codes};
    }
};
#endif
struct Bytewise : Format {
    typedef Scratched Scratch;
    typedef ByteCodes Source;
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        const uint8_t* p = codes(section, blocks, first);
        if (bits != 8) {
            unpack_codes(bits, p, n, scratch.codes);
            p = scratch.codes;
        }
        return {splat(step(section, b)), splat(levels), p};
    }
};
struct Nibblewise : Format {
    typedef NoScratch Scratch;
    typedef NibbleCodes Source;
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t, NoScratch&) const {
        const F16 size = splat(step(section, b));
        const uint8_t* p = codes(section, blocks, first);
#if CC_ISA == 2
        const I16 code = {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
        return {p, to_float(code - splat(levels)) * size};
#else
        return {p, size, splat(levels)};
#endif
    }
};

}  // namespace

CC_KERNEL(cc_qsgd_encode,
          (CC_ENCODE_PARAMS, const float* gain, int bits, int levels, int norm2, int stochastic, int64_t block,
           int64_t step, int64_t rank),
          (CC_ENCODE_ARGS, gain, bits, levels, norm2, stochastic, block, step, rank)) {
    if (!sensible(bits, levels, block)) return CC_BAD_PARAMETER;
    const Setting set{bits, levels, block};
    if (norm2)
        return stochastic ? encode<true, true>(CC_ENCODE_ARGS, gain, set, step, rank)
                          : encode<true, false>(CC_ENCODE_ARGS, gain, set, step, rank);
    return stochastic ? encode<false, true>(CC_ENCODE_ARGS, gain, set, step, rank)
                      : encode<false, false>(CC_ENCODE_ARGS, gain, set, step, rank);
}

CC_KERNEL(cc_qsgd_decode, (CC_DECODE_PARAMS, int bits, int levels, int64_t block),
          (CC_DECODE_ARGS, bits, levels, block)) {
    if (!sensible(bits, levels, block)) return CC_BAD_PARAMETER;
    const Setting set{bits, levels, block};
    if (bits == 4) return decode_all(Nibblewise{{set}}, CC_DECODE_ARGS);
#if CC_ISA > 0
    if (bits != 8) return decode_all(Streamwise(set), CC_DECODE_ARGS);
#endif
    return decode_all(Bytewise{{set}}, CC_DECODE_ARGS);
}
