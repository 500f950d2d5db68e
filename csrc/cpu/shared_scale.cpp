// Levels under scales that all ranks share, packed so that whole 32-bit words can be summed: lane k of word l of a group
// of 16*L elements is the code of element 16*k + l, `width` bits wide, with head-room for the sum over all ranks.
#include "dither.h"
#include "rows.h"

namespace {

struct Words {
    int width, lanes;
    explicit Words(int w) : width(w), lanes(32 / w) {}
    int64_t group() const { return 16 * (int64_t)lanes; }
    int64_t bytes(int64_t numel) const { return 64 * ceil_div(numel, group()); }
};

CC_INLINE I16 shift_left(I16 a, int n) {
#if CC_ISA == 2
    return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))};
#else
    return map<I16>(CC_FN(vi p) { return p << n; }, a);
#endif
}
CC_INLINE I16 shift_right(I16 a, int n) {  // zeros come in
#if CC_ISA == 2
    return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))};
#else
    return map<I16>(CC_FN(vi p) { return (vi)((vu)p >> n); }, a);
#endif
}
CC_INLINE I16 load_words(const uint8_t* p) { return bits(load((const float*)(const void*)p)); }

template <bool NORM2> static float norm(const float* x, int64_t n) {
    F16 sum = splat(0.0f);
    I16 largest = splat(0);
    for (int64_t i = 0; i < n; i += 16) {
        const F16 y = n - i < 16 ? load(x + i, (int)(n - i)) : load(x + i);
        if (NORM2) sum = sum + y * y;  // sixteen sums and a fixed tree: the same bits on every instruction set
        else largest = max(largest, magnitude_bits(y));
    }
    return NORM2 ? __builtin_sqrtf(sum_lanes(sum)) : as_float(max_lanes(largest));
}

// size / levels may be rounded up: near the largest float `levels` of that overflow, and so would the decoder's values.
CC_INLINE bool scalable(float size, int levels) {
    return is_finite(size) && is_finite((float)levels * (size / (float)levels));
}

struct Scale {
    F16 step, inverse;
    Scale(const uint8_t* norms, int64_t block, int levels) {
        float size;
        memcpy(&size, norms + 4 * block, 4);
        // From 2^-100 on the step, size / 127 or more, is far above the denormals (2^-126) and has all of its bits.
        // Smaller blocks are sent as zero and stay in x.
        const bool used = size >= 0x1p-100f && scalable(size, levels);
        step = splat(used ? size / (float)levels : 0.0f), inverse = splat(used ? (float)levels / size : 0.0f);
    }
};

template <bool STOCHASTIC>
static void quantise(float* x, const cc_row& r, const uint8_t* norms, uint8_t* to, const Words& words, int levels,
                     int64_t block, int64_t step, int64_t rank) {
    Dither dither(r.key, step, rank);
    const I16 top = splat(levels), bottom = splat(-levels);
    const int64_t end = r.offset + r.numel;
    for (int64_t base = 0; base < r.numel; base += words.group(), to += 64) {
        const int64_t left = r.numel - base, count = left < words.group() ? left : words.group();
        const float* u = STOCHASTIC ? dither.get(r.offset + base, count, end) : nullptr;
        I16 word = splat(0);
        for (int k = 0; k < words.lanes; k++) {
            const int64_t i = 16 * (int64_t)k;
            I16 code = top;  // zero, in lanes past the end: sums keep to the room that a lane has
            if (i < count) {
                const int m = (int)(count - i < 16 ? count - i : 16);
                float* p = x + base + i;
                const Scale s(norms, (base + i) / block, levels);
                const F16 y = m == 16 ? load(p) : load(p, m), t = y * s.inverse;
                I16 q = STOCHASTIC ? floor_int(t + load(u + i, m)) : round_int(t);
                // y / step may round to beyond the levels, and one level more would carry into the next lane.
                q = min(max(q, bottom), top);
                const F16 rest = y - to_float(q) * s.step;
                if (m == 16) store(p, rest);
                else store(p, rest, m);
                code = q + top;
            }
            word = word | shift_left(code, k * words.width);
        }
        store((int32_t*)(void*)to, word);
    }
}

template <bool ADD>
static void add_up(const uint8_t* from, const cc_row& r, const uint8_t* norms, float* out, const Words& words, int levels,
                   int64_t block, int64_t world, float scale) {
    const I16 zero = splat((int32_t)(levels * world)), mask = splat((int32_t)(((int64_t)1 << words.width) - 1));
    const F16 factor = splat(scale);
    for (int64_t base = 0; base < r.numel; base += words.group(), from += 64) {
        const I16 word = load_words(from);
        for (int k = 0; k < words.lanes && base + 16 * k < r.numel; k++) {
            const int64_t i = base + 16 * (int64_t)k;
            const int m = (int)(r.numel - i < 16 ? r.numel - i : 16);
            const Scale s(norms, i / block, levels);
            const I16 q = (shift_right(word, k * words.width) & mask) - zero;
            F16 v = to_float(q) * (s.step * factor);  // a sum may overflow where the mean does not
            if (m == 16) store(out + i, ADD ? load(out + i) + v : v);
            else store(out + i, ADD ? load(out + i, m) + v : v, m);
        }
    }
}

CC_INLINE bool sensible(int width, int levels, int64_t block) {
    return width >= 1 && width <= 31 && levels >= 1 && levels <= 127 && block > 0 && block % 16 == 0;
}

}  // namespace

CC_KERNEL(cc_shared_norms, (CC_ENCODE_PARAMS, int levels, int norm2, int64_t block),
          (CC_ENCODE_ARGS, levels, norm2, block)) {
    if (!sensible(1, levels, block)) return CC_BAD_PARAMETER;
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, 0, true) ||
            !inside(r.wire, 4 * ceil_div(r.numel, block), wire_bytes))
            return CC_BAD_ROW(i);
        Seen seen;
        for (int64_t b = 0, at = 0; at < r.numel; b++, at += block) {
            const int64_t n = r.numel - at < block ? r.numel - at : block;
            write_y(x + r.x + at, r.add >= 0 ? add + r.add + at : nullptr, n, decay, add_scale, seen);
            float size = norm2 ? norm<true>(x + r.x + at, n) : norm<false>(x + r.x + at, n);
            if (!scalable(size, levels)) status[0] |= 1, size = 0.0f;
            memcpy(wire + r.wire + 4 * b, &size, 4);
        }
        seen.report(r, status);
    }
    return 0;
}

CC_KERNEL(cc_shared_encode,
          (float* x, int64_t x_numel, const uint8_t* norms, int64_t norm_bytes, uint8_t* words, int64_t word_bytes,
           const cc_row* rows, int64_t nrows, int width, int levels, int stochastic, int64_t block, int64_t step,
           int64_t rank),
          (x, x_numel, norms, norm_bytes, words, word_bytes, rows, nrows, width, levels, stochastic, block, step, rank)) {
    if (!sensible(width, levels, block)) return CC_BAD_PARAMETER;
    const Words form(width);
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.numel < 0 || r.numel > MAX_NUMEL || !inside(r.x, r.numel, x_numel) ||
            !inside(r.wire, form.bytes(r.numel), word_bytes) ||
            !inside(r.add, 4 * ceil_div(r.numel, block), norm_bytes))
            return CC_BAD_ROW(i);
        if (stochastic)
            quantise<true>(x + r.x, r, norms + r.add, words + r.wire, form, levels, block, step, rank);
        else quantise<false>(x + r.x, r, norms + r.add, words + r.wire, form, levels, block, step, rank);
    }
    return 0;
}

CC_KERNEL(cc_shared_decode,
          (const uint8_t* words, int64_t word_bytes, const uint8_t* norms, int64_t norm_bytes, const cc_row* rows,
           int64_t nrows, const uint8_t* skip, int64_t skip_numel, float* out, int64_t out_numel, float scale,
           int accumulate, int width, int levels, int64_t block, int64_t world),
          (words, word_bytes, norms, norm_bytes, rows, nrows, skip, skip_numel, out, out_numel, scale, accumulate, width,
           levels, block, world)) {
    // levels * world, what stands for zero in a sum, then fits int32: 127 * 2^24 < 2^31.
    if (!sensible(width, levels, block) || world < 1 || world > (1 << 24)) return CC_BAD_PARAMETER;
    const Words form(width);
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1) continue;
        if (r.numel < 0 || r.numel > MAX_NUMEL || !inside(r.x, r.numel, out_numel) ||
            !inside(r.wire, form.bytes(r.numel), word_bytes) ||
            !inside(r.add, 4 * ceil_div(r.numel, block), norm_bytes) || r.index < 0 || r.index >= skip_numel)
            return CC_BAD_ROW(i);
        float* to = out + r.x;
        if (skip[r.index]) {
            if (!accumulate) memset(to, 0, 4 * (size_t)r.numel);
        } else if (accumulate) {
            add_up<true>(words + r.wire, r, norms + r.add, to, form, levels, block, world, scale);
        } else {
            add_up<false>(words + r.wire, r, norms + r.add, to, form, levels, block, world, scale);
        }
    }
    return 0;
}
