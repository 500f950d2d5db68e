// QSGD (Alistarh et al. 2017), uniform levels -s..s times a step per block:
//   N = max|y| or sqrt(sum y^2);  step = N/s * gain;  q = rint(y*s/N) or floor(y*s/N + U);  value = q*step.
// Two passes over a block that fits the first-level cache, one pass over memory.
#include "codes.h"
#include "decode.h"
#include "dither.h"

namespace {

CC_INLINE int64_t section_bytes(int64_t numel, int bits, int64_t block) {
    return 4 * ceil_div(numel, block) + pad4(ceil_div(numel * bits, 8));
}

struct Setting {
    int bits, levels;
    int64_t block;
};

template <bool ADD, bool NORM2>
CC_INLINE float norm(const float* x, const float* add, int64_t n, float decay, float add_scale, I16& gradient) {
    const F16 d = splat(decay), s = splat(add_scale);
    F16 sum = splat(0.0f);
    I16 largest = splat(0);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        F16 a = m == 16 ? load(x + i) : load(x + i, m), b = a;
        if (ADD) b = m == 16 ? load(add + i) : load(add + i, m);
        gradient = gradient | bits(b);
        F16 y = combine<ADD>(a, b, d, s);
        if (NORM2) sum = sum + y * y;
        else largest = max(largest, magnitude_bits(y));
    }
    return NORM2 ? __builtin_sqrtf(sum_lanes(sum)) : as_float(max_lanes(largest));
}

template <bool ADD, bool STOCHASTIC> struct Quantise {
    const F16 decay, add_scale, inverse, step;
    const I16 top, bottom;
    inline __attribute__((always_inline)) I16 operator()(float* x, const float* add, const float* u, int m) const {
        F16 a = m == 16 ? load(x) : load(x, m), b = a;
        if (ADD) b = m == 16 ? load(add) : load(add, m);
        const F16 y = combine<ADD>(a, b, decay, add_scale), t = y * inverse;
        I16 q = STOCHASTIC ? floor_int(t + load(u)) : round_int(t);
        q = min(max(q, bottom), top);
        const F16 left = y - to_float(q) * step;
        if (m == 16) store(x, left);
        else store(x, left, m);
        return q + top;
    }
};

// Writes the block's codes and leaves y - value in x. `at` is the block's first element in its parameter.
template <bool ADD, bool STOCHASTIC>
CC_INLINE void quantise(float* x, const float* add, int64_t n, float decay, float add_scale, float inverse, float step,
                        const Setting& set, Dither* dither, int64_t at, int64_t end, uint8_t* out) {
    const Quantise<ADD, STOCHASTIC> vector{splat(decay), splat(add_scale),  splat(inverse),
                                           splat(step),  splat(set.levels), splat(-set.levels)};
    alignas(64) uint8_t codes[TILE + 64];
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t count = n - first < TILE ? n - first : TILE;
        const float* u = STOCHASTIC ? dither->get(at + first, count, end) : nullptr;
        float* px = x + first;
        const float* pa = ADD ? add + first : nullptr;
        int64_t i = 0;
        for (; i + 64 <= count; i += 64) {
            I16 c[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                c[v] = vector(px + i + 16 * v, ADD ? pa + i + 16 * v : nullptr, u + i + 16 * v, 16);
            store_u8x64(codes + i, c);
        }
        if (i < count) {
            I16 c[4] = {splat(0), splat(0), splat(0), splat(0)};
            for (int v = 0; i + 16 * v < count; v++) {
                const int64_t j = i + 16 * v;
                c[v] = vector(px + j, ADD ? pa + j : nullptr, u + j, (int)(count - j < 16 ? count - j : 16));
            }
            store_u8x64(codes + i, c);
            memset(codes + count, 0, (size_t)(i + 64 - count));
        }
        pack_codes(set.bits, codes, count, out + first * set.bits / 8);
    }
}

// Step and inverse step of a norm; false when the block cannot be scaled and stays in x whole.
CC_INLINE bool scales(float size, float gain, int levels, float& inverse, float& step) {
    inverse = (float)levels / size;
    step = size / (float)levels * gain;
    return is_finite(size) && is_finite((float)levels * step);
}

template <bool ADD, bool NORM2, bool STOCHASTIC>
static inline float encode_block(float* x, const float* add, int64_t n, float decay, float add_scale, float gain,
                                 const Setting& set, Dither* dither, int64_t at, int64_t end, uint8_t* out,
                                 I16& gradient, uint8_t* status) {
    float size = norm<ADD, NORM2>(x, add, n, decay, add_scale, gradient), inverse, step;
    if (__builtin_expect(size >= 0x1p-100f && scales(size, gain, set.levels, inverse, step), 1)) {
        quantise<ADD, STOCHASTIC>(x, add, n, decay, add_scale, inverse, step, set, dither, at, end, out);
        return step;
    }
    // Too small, not finite, or too large: write the cleaned y over x and look again.
    Seen seen;
    I16 unused = splat(0);
    write_y<ADD>(x, add, n, decay, add_scale, seen);
    if (max_lanes(seen.worst) >= INFINITE) status[0] |= 1;
    size = norm<false, NORM2>(x, nullptr, n, 1.0f, 1.0f, unused);
    if (size < 0x1p-100f) {
        inverse = step = 0.0f;
    } else if (!scales(size, gain, set.levels, inverse, step)) {
        status[0] |= 1;
        inverse = step = 0.0f;
    }
    if (step == 0.0f && inverse == 0.0f)
        quantise<false, false>(x, nullptr, n, 1.0f, 1.0f, 0.0f, 0.0f, set, dither, at, end, out);
    else quantise<false, STOCHASTIC>(x, nullptr, n, 1.0f, 1.0f, inverse, step, set, dither, at, end, out);
    return step;
}

template <bool NORM2, bool STOCHASTIC>
int64_t encode(CC_ENCODE_PARAMS, const float* gain, const Setting& set, int64_t step, int64_t rank) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
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
        memset(codes + bytes, 0, (size_t)(pad4(bytes) - bytes));
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
    uint8_t codes[TILE + 16];
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

CC_INLINE bool sensible(int bits, int levels, int64_t block) {
    return bits >= 2 && bits <= 8 && levels >= 1 && 2 * levels < 1 << bits && block > 0 && block % 16 == 0;
}

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
