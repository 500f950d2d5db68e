// The decoding formats of codebooks: where scales, codes and windows lie in a section, and how they become values. The
// encoder leaves y minus these very values.
#pragma once
#include "codebook.h"

namespace {

struct Shape {
    int bits, part;
    int64_t block;
    // Elements of a block of n that take one bit more, and the bytes of those bits.
    int64_t window(int64_t n) const {
        const int64_t h = (n * part + 32768) >> 16;
        return part && !bits && !h && n ? 1 : part ? h : 0;
    }
    int64_t window_bytes(int64_t n) const { return (window(n) + 7) / 8; }
    int64_t stream(int64_t numel, int64_t b) const {  // byte of the section at which block b's window begins
        return 4 * ceil_div(numel, block) + ceil_div(numel * bits, 8) + b * window_bytes(block);
    }
    int64_t used(int64_t numel) const { return stream(numel, numel / block) + window_bytes(numel % block); }
    int64_t section(int64_t numel) const { return pad4(used(numel)); }  // the scales are whole words already
};

CC_INLINE Mask mask_of(uint32_t m) {  // bit l to lane l
#if CC_ISA == 2
    return {(__mmask16)m};
#else
    static const int32_t lane[16] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return lt(splat(0), splat((int32_t)(m & 0xffff)) & bits(load((const float*)(const void*)lane)));
#endif
}
CC_INLINE uint32_t below(int64_t k) { return k <= 0 ? 0 : k >= 16 ? 0xffff : (1u << k) - 1; }  // lanes 0 .. k-1

// A window of h elements of a block of n, cyclic, from `start`; and its bits, kept in the window's order.
struct Window {
    int64_t n = 0, h = 0, start = 0;
    Window() = default;
    Window(const Shape& shape, int64_t length, const cc_row& row, int64_t first, int64_t step)
        : n(length), h(shape.window(length)) {
        const int64_t number = (row.offset + first) / shape.block;
        start = (int64_t)((uint64_t)philox((uint32_t)number, (uint32_t)step, 0, 5, row.key).w[0] * (uint64_t)n >> 32);
    }
    uint32_t ahead(int64_t j) const {  // lanes j .. j+15 of the block that lie in the window, before its wrap
        return below((start + h < n ? start + h : n) - j) & ~below(start - j);
    }
    uint32_t wrapped(int64_t j) const { return below(start + h - n - j); }
    uint32_t mask(int64_t j) const { return ahead(j) | wrapped(j); }
    // Sixteen bits from bit k of the stream of h bits (k may be negative); those beyond it are zero or garbage.
    uint32_t fetch(const uint8_t* stream, int64_t k) const {
        const int64_t skip = k < 0 ? -k : 0, bit = k + skip, at = bit / 8, end = (h + 7) / 8;
        uint32_t w = 0;
        if (skip > 15) return 0;
        if (at + 4 <= end) memcpy(&w, stream + at, 4);
        else if (at < end) memcpy(&w, stream + at, (size_t)(end - at));
        return (w >> bit % 8) << skip & 0xffff;
    }
    uint32_t read(const uint8_t* stream, int64_t j) const {
        const uint32_t back = wrapped(j);
        return (fetch(stream, j - start) & ~back) | (back ? fetch(stream, j + n - start) & back : 0);
    }
    static void put(uint8_t* stream, int64_t k, uint32_t w) {  // sets bits of a zeroed stream, touching no other byte
        if (k < 0) w >>= -k, k = 0;
        w <<= k % 8;
        for (uint8_t* p = stream + k / 8; w; p++, w >>= 8) *p |= (uint8_t)w;
    }
    void write(uint8_t* stream, int64_t j, uint32_t w) const {
        const uint32_t front = w & ahead(j), back = w & wrapped(j);
        if (front) put(stream, j - start, front);
        if (back) put(stream, j + n - start, back);
    }
};

// All signed levels, and a copy of them times S from which values are picked: all of them where they fit two registers,
// else the positive half.
template <int B> struct Levels {
    enum {
        COUNT = 1 << B,
        WHOLE = COUNT <= (CC_ISA == 2   ? 32
                          : CC_ISA == 1 ? 8
                                        : 256),
        FROM = WHOLE ? 0 : COUNT / 2,
        USED = COUNT - FROM,
        ROOM = USED < 16 ? 16 : USED
    };
    struct Scaled {
        alignas(64) float v[ROOM];
    };
    alignas(64) float level[ROOM] = {};
    explicit Levels(const float* half) {
        for (int c = FROM; c < COUNT && B; c++)
            level[c - FROM] = c < COUNT / 2 ? -half[COUNT / 2 - 1 - c] : half[c - COUNT / 2];
    }
    void scale(float s, Scaled& to) const {
        for (int i = 0; i < ROOM; i += 16) store(to.v + i, load(level + i) * splat(s));
    }
    CC_INLINE F16 value(const Scaled& t, I16 code) {
        if constexpr (B == 0) return splat(0.0f);
        else if constexpr (WHOLE) return pick<COUNT>(t.v, code);
        else return value_of<B>(t.v, code);
    }
};

// Codes of B bits of a tile, from a copy that may be read past its end.
template <int B> struct Codes {
    uint8_t raw[TILE + 32];
    void copy(const uint8_t* from, int64_t n) {
#if CC_ISA > 0
        memcpy(raw, from, (size_t)ceil_div(n * B, 8));
#else
        if constexpr (B == 8) memcpy(raw, from, (size_t)n);
        else unpack_codes<B>(from, n, raw);
        memset(raw + n, 0, 16);
#endif
    }
};
template <int B> struct CodeReader {
#if CC_ISA > 0
    StreamReader reader{B};
    inline I16 read(const Codes<B>& c, int64_t i) const { return reader.read(c.raw + i / 8 * B); }
#else
    inline I16 read(const Codes<B>& c, int64_t i) const { return load_u8(c.raw + i); }
#endif
};

template <int B> struct Whole : Shape {
    Levels<B> levels;
    CodeReader<B> reader;
    Whole(const Shape& shape, const float* half) : Shape(shape), levels(half) {}
    struct Scratch {
        Codes<B> codes;
        typename Levels<B>::Scaled values;
    };
    struct Source {
        const Whole* format;
        const Scratch* s;
        inline F16 at(int64_t i) const { return format->levels.value(s->values, format->reader.read(s->codes, i)); }
        inline F16 tail(int64_t i, int) const { return at(i); }
    };
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        float scale;
        memcpy(&scale, section + 4 * b, 4);
        levels.scale(scale, scratch.values);
        scratch.codes.copy(section + 4 * blocks + first * B / 8, n);
        return {this, &scratch};
    }
};

// Wider codes, and windows: a tile's values are first written to scratch memory by a function of the width, so that the
// decoding loops are compiled once for all of them.
struct Filled : Shape {
    typedef void Fill(const Filled&, float scale, const uint8_t* codes, const uint8_t* stream, const Window&,
                      int64_t first, int64_t n, float* out);
    const void* tables;
    Fill* fill;
    cc_row row;
    int64_t step;
    struct Scratch {
        alignas(64) float values[TILE + 16];
        Window window;
        int64_t number = -1;  // the block that `window` belongs to
    };
    struct Source {
        const float* p;
        inline F16 at(int64_t i) const { return load(p + i); }
        inline F16 tail(int64_t i, int) const { return at(i); }
    };
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        float scale;
        memcpy(&scale, section + 4 * b, 4);
        const int64_t at = b * block;
        if (part && scratch.number != b) {
            scratch.window = Window(*this, row.numel - at < block ? row.numel - at : block, row, at, step);
            scratch.number = b;
        }
        const uint8_t* codes = section + 4 * blocks + first * bits / 8;
        fill(*this, scale, codes, section + stream(row.numel, b), scratch.window, first - at, n, scratch.values);
        return {scratch.values};
    }
};

template <int B, bool PART> struct Tables {
    Levels<B> low;
    Levels<PART ? B + 1 : 0> high;
    CodeReader<B ? B : 1> reader;
    Tables(const float* half) : low(half), high(half + (1 << B >> 1)) {}
    static __attribute__((noinline)) void fill(const Filled& format, float scale, const uint8_t* from,
                                               const uint8_t* stream, const Window& window, int64_t first, int64_t n,
                                               float* out) {
        const Tables& t = *(const Tables*)format.tables;
        typename Levels<B>::Scaled low;
        typename Levels<PART ? B + 1 : 0>::Scaled high;
        Codes<B ? B : 1> codes;
        t.low.scale(scale, low);
        t.high.scale(scale, high);
        if (B) codes.copy(from, n);
        for (int64_t i = 0; i < n; i += 16) {
            const I16 code = B ? t.reader.read(codes, i) : splat(0);
            const uint32_t in = PART ? window.mask(first + i) : 0;
            F16 v = in == 0xffff ? splat(0.0f) : t.low.value(low, code);
            if (PART && in) {
                const I16 fine = twice_plus(code, mask_of(window.read(stream, first + i)));
                v = select(mask_of(in), t.high.value(high, fine), v);
            }
            store(out + i, v);
        }
    }
};

// The decoding format of B bits: `of` a row.
template <int B, bool PART, bool SMALL = !PART && B <= 5> struct Format {
    Shape shape;
    Tables<B, PART> tables;
    Format(const Shape& s, const float* half) : shape(s), tables(half) {}
    Filled of(const cc_row& row, int64_t step) const { return {shape, &tables, &Tables<B, PART>::fill, row, step}; }
};
template <int B> struct Format<B, false, true> {
    Whole<B> whole;
    Format(const Shape& s, const float* half) : whole(s, half) {}
    const Whole<B>& of(const cc_row&, int64_t) const { return whole; }
};

}  // namespace
