// Eight-bit floating point under a scale per block: the largest |y| becomes the type's largest finite number.
//   step = N/top;  t = |y| top/N;  q = t rounded to nearest even in the type;  value = +-q * step.
// Rounding: C = 2^(23 - mantissa bits) times the power of two at or below t (the least normal one for subnormals), so
// that t + C keeps just the bits of the type: q = (t + C) - C, and the integer in t + C's mantissa makes the code.
// Two passes over a block that fits the first-level cache, one pass over memory.
#include "codes.h"
#include "decode.h"
#include "half.h"

namespace {

enum : int32_t { SIGN = INT32_MIN, EXPONENT = INFINITE };

struct E4M3 {
    static constexpr int32_t MANTISSA = 3, LEAST = 127 - 6;  // LEAST: exponent field of the least normal number
    static constexpr float TOP = 448.0f, HALF = 256.0f;      // HALF: a code read as float16 is its number / HALF
    CC_INLINE I16 half(I16 c) { return shl<7>(c & splat(0x7f)) | shl<8>(c & splat(0x80)); }
};
struct E5M2 {
    static constexpr int32_t MANTISSA = 2, LEAST = 127 - 14;
    static constexpr float TOP = 57344.0f, HALF = 1.0f;
    CC_INLINE I16 half(I16 c) { return shl<8>(c); }
};

CC_INLINE int64_t section_bytes(int64_t numel, int64_t block) { return 4 * ceil_div(numel, block) + pad4(numel); }

template <class T> struct Float8 {
    int64_t block;
    typedef NoScratch Scratch;
    struct Source {
        F16 step;
        const uint8_t* p;
        inline F16 at(int64_t i) const { return Float16::unpack(T::half(load_u8(p + i))) * step; }
        inline F16 tail(int64_t i, int n) const {
            return Float16::unpack(T::half(load_u8(read_tail<16>(p + i, n).b))) * step;
        }
    };
    int64_t section(int64_t numel) const { return section_bytes(numel, block); }
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t, NoScratch&) const {
        float step;
        memcpy(&step, section + 4 * b, 4);
        return {splat(step * T::HALF), section + 4 * blocks + first};
    }
};

template <bool ADD>
CC_INLINE float norm(const float* x, const float* add, int64_t n, float decay, float add_scale, I16& gradient) {
    const F16 d = splat(decay), s = splat(add_scale);
    I16 largest = splat(0);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        F16 a = m == 16 ? load(x + i) : load(x + i, m), b = a;
        if (ADD) b = m == 16 ? load(add + i) : load(add + i, m);
        gradient = gradient | bits(b);
        largest = max(largest, magnitude_bits(combine<ADD>(a, b, d, s)));
    }
    return as_float(max_lanes(largest));
}

struct Factors {
    F16 decay, add_scale, inverse, step;
};

// Sixteen elements (m of them real): their codes; what is left goes to x.
template <class T, bool ADD> CC_INLINE I16 quantise(float* x, const float* add, int m, const Factors& f) {
    constexpr int32_t shift = 23 - T::MANTISSA;
    F16 a = m == 16 ? load(x) : load(x, m), b = a;
    if (ADD) b = m == 16 ? load(add) : load(add, m);
    const F16 y = combine<ADD>(a, b, f.decay, f.add_scale);
    const I16 sign = bits(y) & splat(SIGN), size = magnitude_bits(y * f.inverse);
    const I16 power = max(size & splat(EXPONENT), splat(T::LEAST << 23)), big = power + splat(shift << 23);
    const F16 sum = floats(size) + floats(big), value = (sum - floats(big)) * f.step;
    const F16 left = y - floats(bits(value) | sign);
    if (m == 16) store(x, left);
    else store(x, left, m);
    const I16 code = bits(sum) - big + shr<shift>(power) - splat(T::LEAST << T::MANTISSA);
    return code | shr<24>(sign);
}

template <class T, bool ADD>
CC_INLINE void code_block(float* x, const float* add, int64_t n, const Factors& f, uint8_t* out) {
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        I16 c[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) c[v] = quantise<T, ADD>(x + i + 16 * v, ADD ? add + i + 16 * v : nullptr, 16, f);
        store_u8x64(out + i, c);
    }
    if (i < n) {
        I16 c[4] = {splat(0), splat(0), splat(0), splat(0)};
        for (int v = 0; i + 16 * v < n; v++) {
            const int64_t j = i + 16 * v;
            c[v] = quantise<T, ADD>(x + j, ADD ? add + j : nullptr, (int)(n - j < 16 ? n - j : 16), f);
        }
        uint8_t codes[64];
        store_u8x64(codes, c);
        memcpy(out + i, codes, (size_t)(n - i));
    }
}

CC_INLINE bool scales(float size, float top, float& inverse, float& step) {
    inverse = top / size;
    step = size / top;
    return size >= 0x1p-100f && is_finite(size) && is_finite(top * step);
}

template <class T, bool ADD>
static inline float encode_block(float* x, const float* add, int64_t n, float decay, float add_scale, uint8_t* out,
                                 I16& gradient, uint8_t* status) {
    float size = norm<ADD>(x, add, n, decay, add_scale, gradient), inverse, step;
    if (__builtin_expect(scales(size, T::TOP, inverse, step), 1)) {
        code_block<T, ADD>(x, add, n, {splat(decay), splat(add_scale), splat(inverse), splat(step)}, out);
        return step;
    }
    // Too small, not finite, or too large: write the cleaned y over x and look again.
    Seen seen;
    I16 unused = splat(0);
    write_y<ADD>(x, add, n, decay, add_scale, seen);
    if (max_lanes(seen.worst) >= INFINITE) status[0] |= 1;
    size = norm<false>(x, nullptr, n, 1.0f, 1.0f, unused);
    if (!scales(size, T::TOP, inverse, step)) {
        if (!(size < 0x1p-100f)) status[0] |= 1;
        inverse = step = 0.0f;
    }
    code_block<T, false>(x, nullptr, n, {splat(1.0f), splat(1.0f), splat(inverse), splat(step)}, out);
    return step;
}

template <class T> int64_t encode(CC_ENCODE_PARAMS, int64_t block) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !inside(row.wire, section_bytes(row.numel, block), wire_bytes))
            return CC_BAD_ROW(r);
        uint8_t *steps = wire + row.wire, *codes = steps + 4 * ceil_div(row.numel, block);
        float* px = x + row.x;
        const float* pa = add && row.add >= 0 ? add + row.add : nullptr;
        I16 gradient = splat(0);
        for (int64_t i = 0; i < row.numel; i += block, steps += 4) {
            const int64_t n = row.numel - i < block ? row.numel - i : block;
            const float step =
                pa ? encode_block<T, true>(px + i, pa + i, n, decay, add_scale, codes + i, gradient, status)
                   : encode_block<T, false>(px + i, nullptr, n, decay, add_scale, codes + i, gradient, status);
            memcpy(steps, &step, 4);
        }
        memset(codes + row.numel, 0, (size_t)(pad4(row.numel) - row.numel));
        if (or_lanes(gradient) & 0x7fffffff) status[1 + row.index] |= 1;
    }
    return 0;
}

}  // namespace

CC_KERNEL(cc_float8_encode, (CC_ENCODE_PARAMS, int e5m2, int64_t block), (CC_ENCODE_ARGS, e5m2, block)) {
    if (block <= 0 || block % 16) return CC_BAD_PARAMETER;
    return e5m2 ? encode<E5M2>(CC_ENCODE_ARGS, block) : encode<E4M3>(CC_ENCODE_ARGS, block);
}
CC_KERNEL(cc_float8_decode, (CC_DECODE_PARAMS, int e5m2, int64_t block), (CC_DECODE_ARGS, e5m2, block)) {
    if (block <= 0 || block % 16) return CC_BAD_PARAMETER;
    return e5m2 ? decode_all(Float8<E5M2>{block}, CC_DECODE_ARGS) : decode_all(Float8<E4M3>{block}, CC_DECODE_ARGS);
}
