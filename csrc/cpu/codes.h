// Codes of 2..8 bits: bytes <-> bit stream. Element j occupies bits [j*b, (j+1)*b) of the stream, low bit first.
// Eight codes make exactly b bytes, so a 64-bit word holds them, and three steps of pairing squeeze the gaps out.
#pragma once
#include "simd.h"

namespace {

CC_INLINE uint64_t repeat(uint64_t pattern, int bits) {  // the pattern in every `bits` bits of the word
    return bits >= 64 ? pattern : bits == 32 ? pattern * 0x0000000100000001u : pattern * 0x0001000100010001u;
}
CC_INLINE uint64_t ones(int bits) { return ((uint64_t)1 << bits) - 1; }

template <int B> CC_INLINE uint64_t squeeze(uint64_t w) {  // eight bytes -> 8*B bits
#if CC_ISA == 2  // one instruction; on some processors without AVX-512 it takes hundreds of cycles
    return _pext_u64(w, ones(B) * 0x0101010101010101u);
#endif
    w = (w & repeat(ones(B), 16)) | (w & repeat(ones(B) << 8, 16)) >> (8 - B);
    w = (w & repeat(ones(2 * B), 32)) | (w & repeat(ones(2 * B) << 16, 32)) >> (16 - 2 * B);
    return (w & ones(4 * B)) | (w & ones(4 * B) << 32) >> (32 - 4 * B);
}
template <int B> CC_INLINE uint64_t spread(uint64_t w) {  // and back
    w = (w & ones(4 * B)) | (w << (32 - 4 * B) & ones(4 * B) << 32);
    w = (w & repeat(ones(2 * B), 32)) | (w << (16 - 2 * B) & repeat(ones(2 * B) << 16, 32));
    return (w & repeat(ones(B), 16)) | (w << (8 - B) & repeat(ones(B) << 8, 16));
}

// n codes -> ceil(n*B/8) bytes, no byte more; codes has zeros up to the next multiple of 64.
template <int B> CC_INLINE void pack_codes(const uint8_t* codes, int64_t n, uint8_t* out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t w;
        memcpy(&w, codes + i, 8);
        w = squeeze<B>(w);
        memcpy(out + i * B / 8, &w, B);
    }
    if (i < n) {
        uint64_t w;
        memcpy(&w, codes + i, 8);
        w = squeeze<B>(w);
        memcpy(out + i * B / 8, &w, (size_t)((n - i) * B + 7) / 8);
    }
}
template <int B> CC_INLINE void unpack_codes(const uint8_t* in, int64_t n, uint8_t* codes) {
    for (int64_t i = 0; i < n; i += 8) {
        uint64_t w = 0;
        if (i + 8 <= n) memcpy(&w, in + i * B / 8, B);
        else memcpy(&w, in + i * B / 8, (size_t)((n - i) * B + 7) / 8);
        w = spread<B>(w);
        memcpy(codes + i, &w, 8);
    }
}
template <> inline __attribute__((always_inline)) void pack_codes<8>(const uint8_t* codes, int64_t n, uint8_t* out) {
    memcpy(out, codes, (size_t)n);
}

#if CC_ISA > 0
template <> inline __attribute__((always_inline)) void pack_codes<4>(const uint8_t* codes, int64_t n, uint8_t* out) {
    for (int64_t i = 0; i < n; i += 64) {  // low nibble + 16 * high nibble of each pair
        uint8_t t[32];
        uint8_t* to = i + 64 <= n ? out + i / 2 : t;
#if CC_ISA == 2
        __m512i pairs = _mm512_maddubs_epi16(_mm512_loadu_si512(codes + i), _mm512_set1_epi16(0x1001));
        _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi16_epi8(pairs));
#else
        const __m256i weight = _mm256_set1_epi16(0x1001);
        __m256i a = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i*)(codes + i)), weight);
        __m256i b = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i*)(codes + i + 32)), weight);
        _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8));
#endif
        if (to == t) memcpy(out + i / 2, t, (size_t)(n - i + 1) / 2);
    }
}
#endif

static inline void pack_codes(int b, const uint8_t* codes, int64_t n, uint8_t* out) {
    switch (b) {
        case 2: return pack_codes<2>(codes, n, out);
        case 3: return pack_codes<3>(codes, n, out);
        case 4: return pack_codes<4>(codes, n, out);
        case 5: return pack_codes<5>(codes, n, out);
        case 6: return pack_codes<6>(codes, n, out);
        case 7: return pack_codes<7>(codes, n, out);
        default: return pack_codes<8>(codes, n, out);
    }
}
static inline void unpack_codes(int b, const uint8_t* in, int64_t n, uint8_t* codes) {
    switch (b) {
        case 2: return unpack_codes<2>(in, n, codes);
        case 3: return unpack_codes<3>(in, n, codes);
        case 5: return unpack_codes<5>(in, n, codes);
        case 6: return unpack_codes<6>(in, n, codes);
        default: return unpack_codes<7>(in, n, codes);
    }
}

// Sixty-four codes (lanes 0..255) to sixty-four bytes.
CC_INLINE void store_u8x64(uint8_t* out, const I16 c[4]) {
#if CC_ISA == 2
    __m512i t = _mm512_packus_epi16(_mm512_packs_epi32(c[0].v, c[1].v), _mm512_packs_epi32(c[2].v, c[3].v));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, t));
#elif CC_ISA == 1
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 4; i += 2) {
        __m256i a = _mm256_packs_epi32((__m256i)c[i].p0, (__m256i)c[i].p1);
        __m256i b = _mm256_packs_epi32((__m256i)c[i + 1].p0, (__m256i)c[i + 1].p1);
        _mm256_storeu_si256((__m256i*)(out + 16 * i), _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
    }
#elif defined(CC_X86)
    for (int i = 0; i < 4; i++) {
        __m128i a = _mm_packs_epi32((__m128i)c[i].p0, (__m128i)c[i].p1);
        __m128i b = _mm_packs_epi32((__m128i)c[i].p2, (__m128i)c[i].p3);
        _mm_storeu_si128((__m128i*)(out + 16 * i), _mm_packus_epi16(a, b));
    }
#else
    int32_t t[16];
    for (int i = 0; i < 4; i++) {
        store(t, c[i]);
        for (int j = 0; j < 16; j++) out[16 * i + j] = (uint8_t)t[j];
    }
#endif
}

// Sixteen nibbles (eight bytes), one per lane.
CC_INLINE I16 load_nibbles(const uint8_t* p) {
#if CC_ISA == 2
    const __m512i v = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
    return {_mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi64(v, 28)), _mm512_set1_epi32(15))};
#elif defined(CC_X86)
    const __m128i low = _mm_set1_epi8(15), v = _mm_loadl_epi64((const __m128i*)p);
    return widen_u8(_mm_unpacklo_epi8(_mm_and_si128(v, low), _mm_and_si128(_mm_srli_epi16(v, 4), low)));
#else
    uint8_t codes[16];
    for (int i = 0; i < 8; i++) codes[2 * i] = p[i] & 15, codes[2 * i + 1] = p[i] >> 4;
    return load_u8(codes);
#endif
}

#if CC_ISA > 0
// Sixteen codes of `width` bits, one per lane, from a stream: each lane fetches the two bytes that hold its code, and
// shifts. Reads sixteen bytes, of which the codes take 2 * width.
struct StreamReader {
    int width;
#if CC_ISA == 2
    __m512i fetch, shift;
#else
    __m256i fetch0, fetch1, shift0, shift1;
#endif
    StreamReader() = default;
    explicit StreamReader(int w) : width(w) {
        uint8_t bytes[64];
        int32_t shifts[16];
        for (int l = 0; l < 16; l++) {
            const int byte = l * w / 8;
            bytes[4 * l] = (uint8_t)byte, bytes[4 * l + 1] = byte < 15 ? (uint8_t)(byte + 1) : 0x80;
            bytes[4 * l + 2] = bytes[4 * l + 3] = 0x80;  // 0x80 fetches zero
            shifts[l] = l * w % 8;
        }
#if CC_ISA == 2
        fetch = _mm512_loadu_si512(bytes), shift = _mm512_loadu_si512(shifts);
#else
        fetch0 = _mm256_loadu_si256((const __m256i*)bytes), fetch1 = _mm256_loadu_si256((const __m256i*)(bytes + 32));
        shift0 = _mm256_loadu_si256((const __m256i*)shifts), shift1 = _mm256_loadu_si256((const __m256i*)(shifts + 8));
#endif
    }
    inline __attribute__((always_inline)) I16 read(const uint8_t* p) const {
        const __m128i raw = _mm_loadu_si128((const __m128i*)p);
#if CC_ISA == 2
        const I16 wide = {_mm512_srlv_epi32(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(raw), fetch), shift)};
#else
        const __m256i twice = _mm256_broadcastsi128_si256(raw);
        const I16 wide = {(vi)_mm256_srlv_epi32(_mm256_shuffle_epi8(twice, fetch0), shift0),
                          (vi)_mm256_srlv_epi32(_mm256_shuffle_epi8(twice, fetch1), shift1)};
#endif
        return wide & splat((int32_t)ones(width));
    }
};
#endif

}  // namespace
