// QSGD's arithmetic (Alistarh et al. 2017), uniform levels -s..s times a step per block:
//   N = max|y| or sqrt(sum y^2);  step = N/s * gain;  q = rint(y*s/N) or floor(y*s/N + U);  value = q*step.
// Two passes over a block that fits the first-level cache, one pass over memory. However the codes q + s then travel,
// they are these.
#pragma once
#include "codes.h"
#include "decode.h"
#include "dither.h"

namespace {

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

CC_INLINE bool sensible(int bits, int levels, int64_t block) {
    return bits >= 2 && bits <= 8 && levels >= 1 && 2 * levels < 1 << bits && block > 0 && block % 16 == 0;
}

}  // namespace
