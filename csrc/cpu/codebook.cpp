// Codebook quantisers: c = nearest level of y/sigma, S = <c,y>/|c|^2 or |y|^2/<c,y>, value = S*c, per block.
// A block is taken three times while the first-level cache holds it: y = decay*x + add_scale*add and its squares; codes
// and sums; x = y - value, with the decoder's own values. One pass over memory.
#include "codebook_format.h"

namespace {

struct Sums {
    F16 product = splat(0.0f), norm = splat(0.0f);
};

// x <- y, cleaned; returns the sum of squares by the fixed tree.
template <bool ADD> static __attribute__((noinline)) float prepare(float* x, const float* add, int64_t n, float decay,
                                                                   float add_scale, Seen& seen) {
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    F16 sum = zero;
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        F16 a = m == 16 ? load(x + i) : load(x + i, m), b = a;
        if (ADD) b = m == 16 ? load(add + i) : load(add + i, m);
        seen.gradient = seen.gradient | bits(b);
        const F16 y = keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst);
        sum = sum + y * y;
        if (m == 16) store(x + i, y);
        else store(x + i, y, m);
    }
    return sum_lanes(sum);
}

struct Normal {  // y*power has a sum of squares that fp32 holds; t = y*power*inverse; inverse 0: nothing is sent
    float power = 1.0f, squares, inverse;
};
static Normal normal(const float* y, int64_t n, float squares) {
    Normal r;
    // From 2^-80 on, what the square of an element loses to underflow (below 2^-126) is less than 2^-46 of the sum, and
    // the sum has 24 bits. Below, or where it overflows, squares are taken of y * power, whose largest is near 1.
    if (__builtin_expect(!(squares >= 0x1p-80f) || !is_finite(squares), 0)) {
        I16 worst = splat(0);
        F16 sum = splat(0.0f);
        for (int64_t i = 0; i < n; i += 16)
            worst = max(worst, magnitude_bits(load(y + i, (int)(n - i < 16 ? n - i : 16))));
        const float largest = as_float(max_lanes(worst));
        // The exponent that turns the largest element's into that of 1; from 1 to 253 power and 1/power are normal.
        const int32_t e = 254 - (as_bits(largest) >> 23);
        r.power = as_float((e < 1 ? 1 : e > 253 ? 253 : e) << 23);
        for (int64_t i = 0; i < n; i += 16) {
            const F16 t = load(y + i, (int)(n - i < 16 ? n - i : 16)) * splat(r.power);
            sum = sum + t * t;
        }
        squares = sum_lanes(sum);
        if (!(largest >= 0x1p-100f)) {  // the scale would come near the denormals and lose bits: sent as zero
            r.squares = squares, r.inverse = 0.0f;
            return r;
        }
    }
    r.squares = squares;
    r.inverse = 1.0f / __builtin_sqrtf(squares / (float)n);
    return r;
}

// One vector: c and code of sixteen elements, sums updated. `real`: its lanes that exist.
template <int B, bool PART> struct Nearest {
    Book<B> low;
    Book<PART ? B + 1 : 0> high;
    explicit Nearest(const float* half) : low(half), high(half + (1 << B >> 1)) {}
    CC_INLINE void add(F16 c, F16 scaled, int real, Sums& sums) {
        // An even codebook has no zero: lanes past the end would count with its smallest level.
        if (real < 16) c = select(mask_of(below(real)), c, splat(0.0f));
        sums.product = sums.product + c * floats(magnitude_bits(scaled));
        sums.norm = sums.norm + c * c;
    }
    inline __attribute__((always_inline)) I16 whole(F16 y, F16 power, F16 inverse, int real, Sums& sums) const {
        const F16 scaled = y * power;
        const I16 index = low.nearest(floats(magnitude_bits(scaled * inverse)));
        add(low.size_of(index), scaled, real, sums);
        return low.code(index, lt(y, splat(0.0f)));
    }
    // The same with one bit more in the lanes `inside`; `last`: their last bits.
    __attribute__((noinline)) I16 mixed(F16 y, F16 power, F16 inverse, int real, Sums& sums, uint32_t inside,
                                        uint32_t& last) const {
        last = 0;
        if (B && !inside) return whole(y, power, inverse, real, sums);
        const F16 scaled = y * power, size = floats(magnitude_bits(scaled * inverse));
        const Mask negative = lt(y, splat(0.0f)), in = mask_of(inside);
        I16 index = high.nearest(size);
        F16 c = high.size_of(index);
        const I16 fine = high.code(index, negative);
        I16 code = shr<1>(fine);
        last = to_bits(lt(splat(0), fine & splat(1))) & inside;
        if (inside != 0xffff) {
            index = low.nearest(size);
            c = select(in, c, low.size_of(index));
            code = bits(select(in, floats(code), floats(low.code(index, negative))));
        }
        add(c, scaled, real, sums);
        return code;
    }
};

template <int B, bool PART> static inline Sums quantise(const Nearest<B, PART>& nearest, const float* y, int64_t n,
                                                        const Normal& scale, const Window& window, uint8_t* out,
                                                        uint8_t* stream) {
    const F16 power = splat(scale.power), inverse = splat(scale.inverse);
    Sums sums;
    alignas(64) uint8_t codes[TILE + 64];
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t count = n - first < TILE ? n - first : TILE;
        for (int64_t i = 0; i < count; i += 64) {
            I16 c[4] = {splat(0), splat(0), splat(0), splat(0)};
            auto vector = [&](int v, int real) __attribute__((always_inline)) {
                const int64_t j = first + i + 16 * v;
                const F16 a = real == 16 ? load(y + j) : load(y + j, real);
                if (!PART) {
                    c[v] = nearest.whole(a, power, inverse, real, sums);
                    return;
                }
                uint32_t last;
                const uint32_t inside = window.mask(j) & below(n - j);
                c[v] = nearest.mixed(a, power, inverse, real, sums, inside, last);
                window.write(stream, j, last);
            };
            if (i + 64 <= count) {
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) vector(v, 16);
            } else {
                for (int v = 0; i + 16 * v < count; v++)
                    vector(v, count - i - 16 * v < 16 ? (int)(count - i - 16 * v) : 16);
            }
            if (B) store_u8x64(codes + i, c);
        }
        if (!B) continue;
        // Lanes past the end hold a code of their own; the padding of a message is zero.
        memset(codes + count, 0, (size_t)(ceil_div(count, 64) * 64 - count));
        pack_codes<B ? B : 1>(codes, count, out + first * B / 8);
    }
    return sums;
}

template <class F> static inline void subtract(const F& format, float* x, const uint8_t* section, int64_t blocks,
                                               int64_t b, int64_t at, int64_t n) {
    typename F::Scratch scratch;
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t count = n - first < TILE ? n - first : TILE;
        const typename F::Source s = format.source(section, blocks, b, at + first, count, scratch);
        float* px = x + first;
        int64_t i = 0;
        for (; i + 16 <= count; i += 16) store(px + i, load(px + i) - s.at(i));
        if (i < count) store(px + i, load(px + i, (int)(count - i)) - s.tail(i, (int)(count - i)), (int)(count - i));
    }
}

template <int B, bool PART>
int64_t encode(CC_ENCODE_PARAMS, const float* levels, const Shape& shape, bool dot, int64_t step) {
    const Nearest<B, PART> nearest(levels);
    const Format<B, PART> formats(shape, levels);
    const float top = levels[(1 << B >> 1) + (PART ? 1 << B : 0) - 1];
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        // Without add its column is not read, whatever it says: places and lengths are below MAX_NUMEL each.
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !inside(row.wire, shape.section(row.numel), wire_bytes))
            return CC_BAD_ROW(r);
        const auto& format = formats.of(row, step);
        const int64_t blocks = ceil_div(row.numel, shape.block);
        uint8_t* section = wire + row.wire;
        const int64_t streams = shape.stream(row.numel, 0);
        memset(section + streams, 0, (size_t)(shape.section(row.numel) - streams));
        const float* pa = add && row.add >= 0 ? add + row.add : nullptr;
        Seen seen;
        for (int64_t b = 0, i = 0; b < blocks; b++, i += shape.block) {
            const int64_t n = row.numel - i < shape.block ? row.numel - i : shape.block;
            float* px = x + row.x + i;
            const float squares = pa ? prepare<true>(px, pa + i, n, decay, add_scale, seen)
                                     : prepare<false>(px, nullptr, n, decay, add_scale, seen);
            const Normal scale = normal(px, n, squares);
            const Window window = PART ? Window(shape, n, row, i, step) : Window();
            const Sums sums = quantise<B, PART>(nearest, px, n, scale, window, section + 4 * blocks + i * B / 8,
                                                section + shape.stream(row.numel, b));
            const float product = sum_lanes(sums.product), norm = sum_lanes(sums.norm);
            // Levels are symmetric, so <c,y> = <|c|,|y|>; it is 0 where every level that was met is 0.
            float s = dot ? (product > 0.0f ? scale.squares / product : 0.0f) : product / norm;
            s = scale.inverse > 0.0f ? s / scale.power : 0.0f;
            // Where the decoder's largest value would overflow, nothing is sent: x keeps the block.
            if (!is_finite(s * top)) s = 0.0f, status[0] |= 1;
            memcpy(section + 4 * b, &s, 4);
            subtract(format, px, section, blocks, b, i, n);
        }
        seen.report(row, status);
    }
    return 0;
}

template <int B, bool PART> int64_t decode(CC_DECODE_PARAMS, const float* levels, const Shape& shape, int64_t step) {
    const Format<B, PART> formats(shape, levels);
    for (int64_t r = 0; r < nrows; r++)  // a window depends on its row
        if (decode_all(formats.of(rows[r], step), wires, messages, stride, wire_bytes, rows + r, 1, skip, skip_numel,
                       out, out_numel, scale, accumulate))
            return CC_BAD_ROW(r);
    return 0;
}

CC_INLINE bool sensible(int bits, int part, int64_t block) {
    return bits >= 0 && bits <= 8 && part >= 0 && part < 65536 && bits + (part > 0) >= 1 && bits + (part > 0) <= 8 &&
           block > 0 && block % 16 == 0;
}

#define CC_WIDTHS(call)                \
    switch (bits + 10 * (part > 0)) {  \
        case 1: return call(1, false); \
        case 2: return call(2, false); \
        case 3: return call(3, false); \
        case 4: return call(4, false); \
        case 5: return call(5, false); \
        case 6: return call(6, false); \
        case 7: return call(7, false); \
        case 8: return call(8, false); \
        case 10: return call(0, true); \
        case 11: return call(1, true); \
        case 12: return call(2, true); \
        case 13: return call(3, true); \
        case 14: return call(4, true); \
        case 15: return call(5, true); \
        case 16: return call(6, true); \
        default: return call(7, true); \
    }

}  // namespace

CC_KERNEL(cc_codebook_encode,
          (CC_ENCODE_PARAMS, const float* levels, int bits, int part, int dot, int64_t block, int64_t step),
          (CC_ENCODE_ARGS, levels, bits, part, dot, block, step)) {
    if (!sensible(bits, part, block)) return CC_BAD_PARAMETER;
    const Shape shape{bits, part, block};
#define CC_ENCODE(B, PART) (encode<B, PART>(CC_ENCODE_ARGS, levels, shape, dot != 0, step))
    CC_WIDTHS(CC_ENCODE)
}

CC_KERNEL(cc_codebook_decode, (CC_DECODE_PARAMS, const float* levels, int bits, int part, int64_t block, int64_t step),
          (CC_DECODE_ARGS, levels, bits, part, block, step)) {
    if (!sensible(bits, part, block)) return CC_BAD_PARAMETER;
    const Shape shape{bits, part, block};
#define CC_DECODE(B, PART) (decode<B, PART>(CC_DECODE_ARGS, levels, shape, step))
    CC_WIDTHS(CC_DECODE)
}
