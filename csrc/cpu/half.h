// fp32 <-> bfloat16 and float16, sixteen at a time, round to nearest even, denormals kept. `pack` keeps NaN: quiet, with
// its sign and the upper bits of its payload, as processors convert it. `pack_number` is for what cannot be NaN.
#pragma once
#include "simd.h"

namespace {

CC_INLINE I16 where_nan(F16 y, I16 a, I16 b) {
    return bits(select(lt(splat(INFINITE), magnitude_bits(y)), floats(a), floats(b)));
}

struct BFloat16 {
    enum { INF = 0x7f80 };
    CC_INLINE I16 pack(F16 y) { return where_nan(y, shr<16>(bits(y)) | splat(0x40), pack_number(y)); }
    CC_INLINE I16 pack_number(F16 y) {  // add half a unit, and a bit more when the kept part is odd; carry does the rest
        I16 b = bits(y);
        return shr<16>(b + splat(0x7fff) + (shr<16>(b) & splat(1)));
    }
    CC_INLINE F16 unpack(I16 h) { return floats(shl<16>(h)); }
};

struct Float16 {
    enum { INF = 0x7c00 };
#if CC_ISA == 2
    CC_INLINE I16 pack(F16 y) { return pack_number(y); }
    CC_INLINE I16 pack_number(F16 y) {
        return {_mm512_cvtepu16_epi32(_mm512_cvtps_ph(y.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))};
    }
    CC_INLINE F16 unpack(I16 h) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(h.v))}; }
#elif CC_ISA == 1
    CC_INLINE I16 pack(F16 y) { return pack_number(y); }
    CC_INLINE I16 pack_number(F16 y) {
        return map<I16>(
            CC_FN(vf x) {
                return (vi)_mm256_cvtepu16_epi32(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
            },
            y);
    }
    CC_INLINE F16 unpack(I16 h) {
        const __m256i t = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)h.p0, (__m256i)h.p1), 0xd8);
        return {_mm256_cvtph_ps(_mm256_castsi256_si128(t)), _mm256_cvtph_ps(_mm256_extracti128_si256(t, 1))};
    }
#else
    CC_INLINE I16 pack(F16 y) {
        const I16 sign = shr<16>(bits(y)) & splat(0x8000), payload = shr<13>(bits(y)) & splat(0x1ff);
        return where_nan(y, sign | splat(0x7e00) | payload, pack_number(y));
    }
    CC_INLINE I16 pack_number(F16 y) {
        const I16 sign = shr<16>(bits(y)) & splat(0x8000);
        const I16 size = min(magnitude_bits(y), splat(0x47800000));  // 2^16 and more become infinite
        const I16 small =
            round_int(floats(min(size, splat(0x38800000))) * splat(0x1p24f));  // below 2^-14: units of 2^-24
        const I16 biased = size - splat(0x38000000);                           // exponent bias 127 -> 15
        const I16 large = shr<13>(biased + splat(0xfff) + (shr<13>(biased) & splat(1)));
        return sign | bits(select(lt(size, splat(0x38800000)), floats(small), floats(large)));
    }
    CC_INLINE F16 unpack(I16 h) {
        const I16 sign = shl<16>(h & splat(0x8000)), size = h & splat(0x7fff), wide = shl<13>(size);
        const F16 small = to_float(size) * splat(0x1p-24f);
        const F16 normal = floats(wide + splat(0x38000000)), infinite = floats(wide + splat(0x70000000));
        const F16 value = select(lt(size, splat(0x400)), small, select(lt(size, splat(INF)), normal, infinite));
        return floats(bits(value) | sign);
    }
#endif
};

}  // namespace
