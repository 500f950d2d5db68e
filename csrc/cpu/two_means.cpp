// Two means (Seide et al. 2014): one bit per element, and per block the mean of each of the two parts.
#include "block_encode.h"
#include "decode.h"

namespace {

struct TwoMeans {
    int64_t block;
    int64_t section(int64_t numel) const { return 8 * ceil_div(numel, block) + pad4(ceil_div(numel, 8)); }

    struct Scale {
        float negative, other;
        bool ok;
    };
    struct Row {
        typedef TwoMeans::Scale Scale;
        const int64_t block;
        uint8_t *means, *signs, *pad, *end;
        Row(const TwoMeans& f, const cc_row& row, int64_t, uint8_t* section)
            : block(f.block), means(section), signs(section + 8 * ceil_div(row.numel, f.block)),
              pad(signs + ceil_div(row.numel, 8)), end(section + f.section(row.numel)) {}

        Scale nothing() const { return {0.0f, 0.0f, true}; }

        template <bool ADD> Scale measure(const Input<ADD>& in, int64_t n, I16& gradient) const {
            const Reader<ADD> reader(in);
            const F16 zero = splat(0.0f);
            F16 below = zero, above = zero;
            int64_t count = 0;
            for (int64_t i = 0; i < n; i += 16) {  // what lies beyond the end is zero, and so adds nothing
                const F16 y = reader.at(i, (int)(n - i < 16 ? n - i : 16), gradient);
                const Mask negative = lt(y, zero);
                below = below + select(negative, y, zero);
                above = above + select(negative, zero, y);
                count += __builtin_popcount(to_bits(negative));
            }
            const float low = sum_lanes(below), high = sum_lanes(above);
            return {count ? low / (float)count : 0.0f, count < n ? high / (float)(n - count) : 0.0f,
                    is_finite(low) && is_finite(high)};
        }

        template <bool ADD> void code(const Input<ADD>& in, int64_t b, int64_t n, const Scale& s) {
            memcpy(means + 8 * b, &s.negative, 4);
            memcpy(means + 8 * b + 4, &s.other, 4);
            const Reader<ADD> reader(in);
            const F16 low = splat(s.negative), high = splat(s.other), zero = splat(0.0f);
            uint8_t* out = signs + b * block / 8;
            for (int64_t i = 0; i < n; i += 16) {
                const int m = (int)(n - i < 16 ? n - i : 16);
                const F16 y = reader.at(i, m);
                const Mask negative = lt(y, zero);
                const uint16_t mask = (uint16_t)to_bits(negative);
                if (m == 16) memcpy(out + i / 8, &mask, 2);
                else memcpy(out + i / 8, &mask, (size_t)(m + 7) / 8);
                reader.leave(i, m, y - select(negative, low, high));
            }
        }
        void finish() const { memset(pad, 0, (size_t)(end - pad)); }
    };

    typedef NoScratch Scratch;
    struct Source {
        F16 low, high;
        const uint8_t* p;
        inline F16 pick(uint16_t m) const {
#if CC_ISA == 2
            return {_mm512_mask_blend_ps(m, high.v, low.v)};
#elif CC_ISA == 1
            const __m256i by = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), all = _mm256_set1_epi32(m);
            const __m256i first = _mm256_sllv_epi32(all, by);  // bit l at the sign of lane l, where a blend looks
            const __m256i second = _mm256_sllv_epi32(_mm256_srli_epi32(all, 8), by);
            return {_mm256_blendv_ps(high.p0, low.p0, (__m256)first),
                    _mm256_blendv_ps(high.p1, low.p1, (__m256)second)};
#else
            static const int32_t lane[16] = {1,   2,   4,    8,    16,   32,   64,    128,
                                             256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
            const I16 bit = bits(load((const float*)(const void*)lane));
            return select(lt(splat(0), splat((int32_t)m) & bit), low, high);
#endif
        }
        inline F16 at(int64_t i) const {
            uint16_t m;
            memcpy(&m, p + i / 8, 2);
            return pick(m);
        }
        inline F16 tail(int64_t i, int n) const {
            const Bytes<2> b = read_tail<2>(p + i / 8, (n + 7) / 8);
            return pick((uint16_t)(b.b[0] | b.b[1] << 8));
        }
    };
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t, NoScratch&) const {
        float means[2];
        memcpy(means, section + 8 * b, 8);
        return {splat(means[0]), splat(means[1]), section + 8 * blocks + first / 8};
    }
};

}  // namespace

CC_KERNEL(cc_two_means_encode, (CC_ENCODE_PARAMS, int64_t block), (CC_ENCODE_ARGS, block)) {
    if (block <= 0 || block % 16) return CC_BAD_PARAMETER;
    return encode_all(TwoMeans{block}, CC_ENCODE_ARGS);
}
CC_KERNEL(cc_two_means_decode, (CC_DECODE_PARAMS, int64_t block), (CC_DECODE_ARGS, block)) {
    if (block <= 0 || block % 16) return CC_BAD_PARAMETER;
    return decode_all(TwoMeans{block}, CC_DECODE_ARGS);
}
