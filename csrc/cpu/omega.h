// Elias' recursive omega code (Elias 1975), and bit streams to put it in.
//
// omega(1) = "0"; omega(k) = G .. "0" where G is k in binary, with the omega code of (bits of k) - 1 in front, less its
// "0".  2: 10 0;  4: 10 100 0;  16: 10 100 10000 0.  The first bit of a word comes first in the stream, and bit 0 of
// the stream is the low bit of byte 0: so words are kept reversed, first bit lowest.
//
// Words of a level q: dense "omega(|q|+1) sign", no sign for 0;  sparse "sign omega(|q|)", after the omega of the gap.
// A sparse block ends with the gap that leads to its end.
#pragma once
#include <pthread.h>

#include "codes.h"

namespace {

enum : int { MAX_LEVEL = 127 };
enum : int64_t { SHORT_GAP = 256 };  // gaps below it have their words in a table

struct Word {
    uint64_t bits;
    int length;
};

CC_INLINE uint64_t reversed(uint64_t v, int bits) {  // the low `bits` bits, the other way round
    v = (v >> 1 & 0x5555555555555555u) | (v & 0x5555555555555555u) << 1;
    v = (v >> 2 & 0x3333333333333333u) | (v & 0x3333333333333333u) << 2;
    v = (v >> 4 & 0x0f0f0f0f0f0f0f0fu) | (v & 0x0f0f0f0f0f0f0f0fu) << 4;
    return __builtin_bswap64(v) >> (64 - bits);
}
static inline Word omega(uint64_t k) {  // 1 <= k <= 2^40: at most 53 bits
    Word w{0, 1};
    while (k > 1) {
        const int n = 64 - __builtin_clzll(k);
        w.bits = w.bits << n | reversed(k, n);
        w.length += n;
        k = (uint64_t)n - 1;
    }
    return w;
}
CC_INLINE Word join(Word first, Word then) {
    return {first.bits | then.bits << first.length, first.length + then.length};
}

// Writes whole 64-bit words, and at the end no byte more than the bits take.
struct BitWriter {
    uint8_t* p;
    uint64_t held = 0;
    int count = 0;
    CC_INLINE void store64(uint8_t* p, uint64_t w) { memcpy(p, &w, 8); }
    inline __attribute__((always_inline)) void put(uint64_t bits, int length) {  // length <= 64, no bits above it
        held |= bits << count;
        if (count + length >= 64) {
            store64(p, held);
            p += 8;
            held = count ? bits >> (64 - count) : 0;
            count -= 64;
        }
        count += length;
    }
    uint8_t* finish() {
        memcpy(p, &held, (size_t)(count + 7) / 8);
        return p + (count + 7) / 8;
    }
};

// Reads from `bytes` bytes; behind them lie zeros, so that any stream can be read any number of times: the caller asks
// at the end whether `at` went too far. A word that is complete inside the stream does not depend on what follows it.
struct BitReader {
    const uint8_t* p;
    int64_t bytes, at;  // `at` counts bits
    inline __attribute__((always_inline)) uint64_t peek() const {  // 57 bits at least
        const int64_t byte = at >> 3;
        uint64_t w = 0;
        if (__builtin_expect(byte + 8 <= bytes, 1)) memcpy(&w, p + byte, 8);
        else if (byte < bytes) memcpy(&w, p + byte, (size_t)(bytes - byte));
        return w >> (at & 7);
    }
    bool bit() {
        const bool b = peek() & 1;
        at++;
        return b;
    }
    uint64_t omega() {  // 0: no number up to 2^41
        uint64_t k = 1;
        for (;;) {
            const uint64_t w = peek();
            if (!(w & 1)) {
                at++;
                return k;
            }
            if (k > 40) return 0;
            const int n = (int)k + 1;
            k = reversed(w, n);
            at += n;
        }
    }
};

// What a section holds: u32 bytes used | steps (fp32) | forms, two bits per block | stream | zeros up to four bytes.
enum Form : int { FIXED = 0, DENSE = 1, SPARSE = 2, ZERO = 3 };
CC_INLINE int64_t elias_forms_at(int64_t blocks) { return 4 + 4 * blocks; }
CC_INLINE int64_t elias_stream_at(int64_t blocks) { return 4 + 4 * blocks + (blocks + 3) / 4; }
CC_INLINE int64_t elias_capacity(int64_t numel, int bits, int64_t block) {
    return (elias_stream_at((numel + block - 1) / block) + (numel * bits + 7) / 8 + 3) & ~(int64_t)3;
}
CC_INLINE bool elias_fits(const cc_row& r, int bits, int64_t block, int64_t wire_bytes) {  // and the u32 can say it
    const int64_t capacity = elias_capacity(r.numel, bits, block);
    return capacity <= UINT32_MAX && r.wire >= 0 && r.wire <= wire_bytes - capacity;
}

}  // namespace
