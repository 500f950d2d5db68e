// Five digits 0, 1, 2 to a byte. Groups of 80 elements make sixteen bytes: byte l holds, from its lowest power of three
// up, elements l, 16 + l, 32 + l, 48 + l and 64 + l of the group, so that vectors of sixteen need not be taken apart. Of
// a last group of fewer elements only the bytes that hold one are there; digits that are missing count as 0.
// Bytes above 242 read as 243 less.
#pragma once
#include "simd.h"

namespace {

enum { TRITS = 80 };  // elements of a group

CC_INLINE int64_t trit_bytes(int64_t numel) {
    const int64_t rest = numel % TRITS;
    return numel / TRITS * 16 + (rest < 16 ? rest : 16);
}

typedef uint8_t trit_bytes16 __attribute__((vector_size(16)));

CC_INLINE void pack_trits(const uint8_t* digits, uint8_t* out) {  // one group
    trit_bytes16 sum, d;
    memcpy(&sum, digits + 64, 16);
    for (int k = 3; k >= 0; k--) {
        memcpy(&d, digits + 16 * k, 16);
        sum = sum + sum + sum + d;
    }
    memcpy(out, &sum, 16);
}

// One group to 80 digits of 16 bits. b/243 as a fraction of sixteen bits, rounded up, is exact enough for five digits:
// each multiplication by three pushes out the next, from the highest down. Above 242 the fraction wraps.
CC_INLINE void unpack_trits(const uint8_t* in, uint16_t* digits) {
#if CC_ISA > 0
    const __m256i three = _mm256_set1_epi16(3);
    __m256i f = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)in));
    f = _mm256_mullo_epi16(f, _mm256_set1_epi16(270));
#pragma GCC unroll 5
    for (int k = 4; k >= 0; k--) {
        _mm256_storeu_si256((__m256i*)(digits + 16 * k), _mm256_mulhi_epu16(f, three));
        f = _mm256_mullo_epi16(f, three);
    }
#elif defined(CC_X86)
    const __m128i three = _mm_set1_epi16(3), zero = _mm_setzero_si128(), bytes = _mm_loadu_si128((const __m128i*)in);
    for (int half = 0; half < 2; half++) {
        __m128i f = half ? _mm_unpackhi_epi8(bytes, zero) : _mm_unpacklo_epi8(bytes, zero);
        f = _mm_mullo_epi16(f, _mm_set1_epi16(270));
        for (int k = 4; k >= 0; k--) {
            _mm_storeu_si128((__m128i*)(digits + 16 * k + 8 * half), _mm_mulhi_epu16(f, three));
            f = _mm_mullo_epi16(f, three);
        }
    }
#else
    for (int l = 0; l < 16; l++) {
        uint32_t f = (uint16_t)(in[l] * 270);
        for (int k = 4; k >= 0; k--) {
            digits[16 * k + l] = (uint16_t)(f * 3 >> 16);
            f = f * 3 & 0xffff;
        }
    }
#endif
}

}  // namespace
