// Sign: one scale per block (mean |y|, root mean square, or sum y^2 / sum |y|) and one bit per element. Two passes over
// a block that fits the first-level cache, one pass over memory.
#include "decode.h"

namespace {

struct Sign {
    int64_t block;
    typedef NoScratch Scratch;
    struct Source {
        F16 plus, minus;
        const uint8_t* p;
        inline F16 pick(uint16_t m) const {
#if CC_ISA == 2
            return {_mm512_mask_blend_ps(m, plus.v, minus.v)};
#elif CC_ISA == 1
            const __m256i by = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), all = _mm256_set1_epi32(m);
            const __m256i top = _mm256_set1_epi32(INT32_MIN);  // bit l to the sign position of lane l
            const __m256i lo = _mm256_and_si256(_mm256_sllv_epi32(all, by), top);
            const __m256i hi = _mm256_and_si256(_mm256_sllv_epi32(_mm256_srli_epi32(all, 8), by), top);
            return {_mm256_xor_ps(plus.p0, (__m256)lo), _mm256_xor_ps(plus.p1, (__m256)hi)};
#else
            static const int32_t lane[16] = {1,   2,   4,    8,    16,   32,   64,    128,
                                             256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
            const I16 bit = bits(load((const float*)(const void*)lane));
            return select(lt(splat(0), splat((int32_t)m) & bit), minus, plus);
#endif
        }
        inline F16 at(int64_t i) const {
            uint16_t m;
            memcpy(&m, p + i / 8, 2);
            return pick(m);
        }
        inline F16 tail(int64_t i, int n) const {
            Bytes<2> b = read_tail<2>(p + i / 8, (n + 7) / 8);
            return pick((uint16_t)(b.b[0] | b.b[1] << 8));
        }
    };
    int64_t section(int64_t numel) const { return 4 * ceil_div(numel, block) + pad4(ceil_div(numel, 8)); }
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t, NoScratch&) const {
        float scale;
        memcpy(&scale, section + 4 * b, 4);
        return {splat(scale), splat(-scale), section + 4 * blocks + first / 8};
    }
};

enum { L1, L2, DOT };  // which scale

struct Total {
    float sizes, squares;  // sum |y|, sum y^2: those that the scale needs, else 0
    bool finite() const { return is_finite(sizes) && is_finite(squares); }
};
template <bool ADD, int KIND>
CC_INLINE Total total(const float* x, const float* add, int64_t n, float decay, float add_scale, I16& gradient) {
    const F16 d = splat(decay), s = splat(add_scale);
    F16 sizes = splat(0.0f), squares = splat(0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        F16 a = m == 16 ? load(x + i) : load(x + i, m), b = a;
        if (ADD) b = m == 16 ? load(add + i) : load(add + i, m);
        gradient = gradient | bits(b);
        F16 y = combine<ADD>(a, b, d, s);
        if (KIND != L2) sizes = sizes + floats(magnitude_bits(y));
        if (KIND != L1) squares = squares + y * y;
    }
    return {KIND == L2 ? 0.0f : sum_lanes(sizes), KIND == L1 ? 0.0f : sum_lanes(squares)};
}

template <bool ADD>
CC_INLINE void split(float* x, const float* add, int64_t n, float decay, float add_scale, float scale, uint8_t* out) {
    const F16 d = splat(decay), s = splat(add_scale), plus = splat(scale), minus = splat(-scale), zero = splat(0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        F16 a = m == 16 ? load(x + i) : load(x + i, m), b = a;
        if (ADD) b = m == 16 ? load(add + i) : load(add + i, m);
        F16 y = combine<ADD>(a, b, d, s);
        Mask negative = lt(y, zero);
        F16 left = y - select(negative, minus, plus);
        uint16_t code = (uint16_t)to_bits(negative);
        if (m == 16) {
            memcpy(out + i / 8, &code, 2);
            store(x + i, left);
        } else {
            memcpy(out + i / 8, &code, (size_t)(m + 7) / 8);
            store(x + i, left, m);
        }
    }
}

template <int KIND> CC_INLINE float scale_of(const Total& t, int64_t n) {
    if (KIND == DOT) return t.sizes > 0.0f ? t.squares / t.sizes : 0.0f;
    return KIND == L2 ? __builtin_sqrtf(t.squares / (float)n) : t.sizes / (float)n;
}

template <bool ADD, int KIND> static inline float encode_block(float* x, const float* add, int64_t n, float decay,
                                                               float add_scale, uint8_t* out, I16& gradient,
                                                               uint8_t* status) {
    Total sums = total<ADD, KIND>(x, add, n, decay, add_scale, gradient);
    if (__builtin_expect(sums.finite(), 1)) {
        float scale = scale_of<KIND>(sums, n);
        split<ADD>(x, add, n, decay, add_scale, scale, out);
        return scale;
    }
    // Something is not finite, or the sum overflowed: write the cleaned y over x and look again.
    Seen seen;
    I16 unused = splat(0);
    write_y<ADD>(x, add, n, decay, add_scale, seen);
    status[0] |= 1;
    sums = total<false, KIND>(x, nullptr, n, 1.0f, 1.0f, unused);
    float scale = sums.finite() ? scale_of<KIND>(sums, n) : 0.0f;
    split<false>(x, nullptr, n, 1.0f, 1.0f, scale, out);
    return scale;
}

template <int KIND> int64_t encode(CC_ENCODE_PARAMS, int64_t block) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        const Sign format{block};
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !inside(row.wire, format.section(row.numel), wire_bytes))
            return CC_BAD_ROW(r);
        const int64_t blocks = ceil_div(row.numel, block), bytes = ceil_div(row.numel, 8);
        uint8_t *scales = wire + row.wire, *codes = scales + 4 * blocks;
        float* px = x + row.x;
        const float* pa = add && row.add >= 0 ? add + row.add : nullptr;
        I16 gradient = splat(0);
        for (int64_t b = 0, i = 0; b < blocks; b++, i += block) {
            const int64_t n = row.numel - i < block ? row.numel - i : block;
            float scale =
                pa ? encode_block<true, KIND>(px + i, pa + i, n, decay, add_scale, codes + i / 8, gradient, status)
                   : encode_block<false, KIND>(px + i, nullptr, n, decay, add_scale, codes + i / 8, gradient, status);
            memcpy(scales + 4 * b, &scale, 4);
        }
        memset(codes + bytes, 0, (size_t)(pad4(bytes) - bytes));
        if (or_lanes(gradient) & 0x7fffffff) status[1 + row.index] |= 1;
    }
    return 0;
}

}  // namespace

CC_KERNEL(cc_sign_encode, (CC_ENCODE_PARAMS, int kind, int64_t block), (CC_ENCODE_ARGS, kind, block)) {
    if (block <= 0 || block % 16 || kind < L1 || kind > DOT) return CC_BAD_PARAMETER;
    if (kind == DOT) return encode<DOT>(CC_ENCODE_ARGS, block);
    return kind == L2 ? encode<L2>(CC_ENCODE_ARGS, block) : encode<L1>(CC_ENCODE_ARGS, block);
}
CC_KERNEL(cc_sign_decode, (CC_DECODE_PARAMS, int64_t block), (CC_DECODE_ARGS, block)) {
    if (block <= 0 || block % 16) return CC_BAD_PARAMETER;
    return decode_all(Sign{block}, CC_DECODE_ARGS);
}
