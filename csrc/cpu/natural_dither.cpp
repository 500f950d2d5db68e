// Natural dithering: levels 0 and N * 2^(i-s), i = 1..s, N a block's norm, with random rounding between neighbours.
// With p = 2^(s-1) |y|/N, so that the lowest level is 1,  z = max(p + 1, 2 p)  is linear in p between any two levels,
// and so are its bits, read as an integer:  i = (bits(z) - bits(1) + 128 u + 64) >> 23 , as in natural.cpp.
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

enum : int32_t { ONE = 0x3f800000, SIGN = INT32_MIN };
CC_INLINE float power(int e) { return as_float((e + 127) << 23); }

// +-2^(i-s) * step of the codes q + s, q = +-i. The sign is turned, not set: a step may be what a peer made up.
CC_INLINE F16 level_value(I16 index, I16 sign, F16 step, int levels) {
    const F16 size = floats(shl<23>(index + splat(127 - levels))) * step;
    return floats(bits(select(lt(splat(0), index), size, splat(0.0f))) ^ (sign & splat(SIGN)));
}
CC_INLINE F16 code_value(I16 code, F16 step, int levels) {
    const I16 q = code - splat(levels);
    return level_value(max(q, splat(0) - q), q, step, levels);
}

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

struct Factors {
    F16 decay, add_scale, inverse, lowest, step;
    int levels;
};

// Sixteen elements (m of them real): their codes; what is left goes to x.
template <bool ADD> CC_INLINE I16 quantise(float* x, const float* add, const int32_t* u, int m, const Factors& f) {
    F16 a = m == 16 ? load(x) : load(x, m), b = a;
    if (ADD) b = m == 16 ? load(add) : load(add, m);
    const F16 y = combine<ADD>(a, b, f.decay, f.add_scale);
    const F16 p = floats(magnitude_bits(y * f.inverse)) * f.lowest;
    const I16 z = max(bits(p + splat(1.0f)), bits(p + p)) - splat(ONE);
    const I16 index = min(shr<23>(z + load_int(u)), splat(f.levels));
    const F16 left = y - level_value(index, bits(y) & bits(select(lt(splat(0), index), floats(splat(SIGN)), splat(0.0f))),
                                     f.step, f.levels);
    if (m == 16) store(x, left);
    else store(x, left, m);
    const I16 other = splat(0) - index;
    return bits(select(lt(bits(y), splat(0)), floats(other), floats(index))) + splat(f.levels);
}

// Writes the block's codes and leaves y - value in x. `at` is the block's first element in its parameter.
template <bool ADD> CC_INLINE void code_block(float* x, const float* add, int64_t n, const Factors& f, int bits,
                                              DitherBits& dither, int64_t at, int64_t end, uint8_t* out) {
    alignas(64) uint8_t codes[TILE + 64];
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t count = n - first < TILE ? n - first : TILE;
        const int32_t* u = dither.get(at + first, count, end);
        float* px = x + first;
        const float* pa = ADD ? add + first : nullptr;
        int64_t i = 0;
        for (; i + 64 <= count; i += 64) {
            I16 c[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const int64_t j = i + 16 * v;
                c[v] = quantise<ADD>(px + j, ADD ? pa + j : nullptr, u + j, 16, f);
            }
            store_u8x64(codes + i, c);
        }
        if (i < count) {
            I16 c[4] = {splat(0), splat(0), splat(0), splat(0)};
            for (int v = 0; i + 16 * v < count; v++) {
                const int64_t j = i + 16 * v;
                c[v] = quantise<ADD>(px + j, ADD ? pa + j : nullptr, u + j, (int)(count - j < 16 ? count - j : 16), f);
            }
            store_u8x64(codes + i, c);
            memset(codes + count, 0, (size_t)(i + 64 - count));
        }
        pack_codes(bits, codes, count, out + first * bits / 8);
    }
}

template <bool ADD, bool NORM2>
static inline float encode_block(float* x, const float* add, int64_t n, float decay, float add_scale, float gain,
                                 const Setting& set, DitherBits& dither, int64_t at, int64_t end, uint8_t* out,
                                 I16& gradient, uint8_t* status) {
    const F16 lowest = splat(power(set.levels - 1)), one = splat(1.0f);
    float size = norm<ADD, NORM2>(x, add, n, decay, add_scale, gradient), step = size * gain;
    if (__builtin_expect(size >= 0x1p-100f && is_finite(size) && is_finite(step), 1)) {
        const Factors f{splat(decay), splat(add_scale), splat(1.0f / size), lowest, splat(step), set.levels};
        code_block<ADD>(x, add, n, f, set.bits, dither, at, end, out);
        return step;
    }
    // Too small, not finite, or too large: write the cleaned y over x and look again.
    Seen seen;
    I16 unused = splat(0);
    write_y<ADD>(x, add, n, decay, add_scale, seen);
    if (max_lanes(seen.worst) >= INFINITE) status[0] |= 1;
    size = norm<false, NORM2>(x, nullptr, n, 1.0f, 1.0f, unused);
    step = size * gain;
    float inverse = 1.0f / size;
    if (size < 0x1p-100f || !is_finite(size) || !is_finite(step)) {
        if (!(size < 0x1p-100f)) status[0] |= 1;
        inverse = step = 0.0f;
    }
    const Factors f{one, one, splat(inverse), lowest, splat(step), set.levels};
    code_block<false>(x, nullptr, n, f, set.bits, dither, at, end, out);
    return step;
}

template <bool NORM2>
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
        DitherBits dither(row.key, step, rank);
        const int64_t end = row.offset + row.numel;
        for (int64_t b = 0, i = 0; b < blocks; b++, i += set.block) {
            const int64_t n = row.numel - i < set.block ? row.numel - i : set.block;
            uint8_t* out = codes + i * set.bits / 8;
            const float size = pa ? encode_block<true, NORM2>(px + i, pa + i, n, decay, add_scale, gain[r], set, dither,
                                                              row.offset + i, end, out, gradient, status)
                                  : encode_block<false, NORM2>(px + i, nullptr, n, decay, add_scale, gain[r], set,
                                                               dither, row.offset + i, end, out, gradient, status);
            memcpy(steps + 4 * b, &size, 4);
        }
        memset(codes + bytes, 0, (size_t)(pad4(bytes) - bytes));
        if (or_lanes(gradient) & 0x7fffffff) status[1 + row.index] |= 1;
    }
    return 0;
}

struct Scratched {
    uint8_t codes[TILE + 16];
};
struct Format : Setting {
    typedef Scratched Scratch;
#if CC_ISA > 0
    StreamReader reader;
    explicit Format(const Setting& set) : Setting(set), reader(set.bits) {}
#else
    explicit Format(const Setting& set) : Setting(set) {}
#endif
    struct Source {  // from a copy of the tile's codes that may be read past its end
        F16 step;
        int levels, bits;
#if CC_ISA > 0
        StreamReader reader;
        F16 table;  // AVX-512, four bits: the sixteen values
#endif
        const uint8_t* p;
        inline __attribute__((always_inline)) F16 at(int64_t i) const {
#if CC_ISA == 2
            if (bits == 4) {
                const __m512i v = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)(p + i / 2)));
                return {_mm512_permutexvar_ps(_mm512_or_si512(v, _mm512_slli_epi64(v, 28)), table.v)};
            }
#endif
            if (bits == 4) return code_value(load_nibbles(p + i / 2), step, levels);
#if CC_ISA > 0
            if (bits != 8) return code_value(reader.read(p + i / 8 * bits), step, levels);
#endif
            return code_value(load_u8(p + i), step, levels);
        }
        inline F16 tail(int64_t i, int) const { return at(i); }
    };
    int64_t section(int64_t numel) const { return section_bytes(numel, bits, block); }
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        float size;
        memcpy(&size, section + 4 * b, 4);
        const uint8_t* codes = section + 4 * blocks + first * bits / 8;
        if (CC_ISA > 0 || bits == 4 || bits == 8) memcpy(scratch.codes, codes, (size_t)ceil_div(n * bits, 8));
        else unpack_codes(bits, codes, n, scratch.codes);
        Source s;
        s.step = splat(size), s.levels = levels, s.bits = bits, s.p = scratch.codes;
#if CC_ISA > 0
        s.reader = reader;
#endif
#if CC_ISA == 2
        const I16 all = {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
        s.table = code_value(all, s.step, levels);
#endif
        return s;
    }
};

CC_INLINE bool sensible(int bits, int64_t block) { return bits >= 2 && bits <= 8 && block > 0 && block % 16 == 0; }

}  // namespace

CC_KERNEL(cc_natural_dither_encode,
          (CC_ENCODE_PARAMS, const float* gain, int bits, int norm2, int64_t block, int64_t step, int64_t rank),
          (CC_ENCODE_ARGS, gain, bits, norm2, block, step, rank)) {
    if (!sensible(bits, block)) return CC_BAD_PARAMETER;
    const Setting set{bits, (1 << (bits - 1)) - 1, block};
    return norm2 ? encode<true>(CC_ENCODE_ARGS, gain, set, step, rank)
                 : encode<false>(CC_ENCODE_ARGS, gain, set, step, rank);
}

CC_KERNEL(cc_natural_dither_decode, (CC_DECODE_PARAMS, int bits, int64_t block), (CC_DECODE_ARGS, bits, block)) {
    if (!sensible(bits, block)) return CC_BAD_PARAMETER;
    return decode_all(Format(Setting{bits, (1 << (bits - 1)) - 1, block}), CC_DECODE_ARGS);
}
