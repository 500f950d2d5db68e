// Dithers of stochastic rounding: U = (u + 1/2) / 65536 in (0, 1), u sixteen bits of Philox.
// Element j of a parameter: superblock j/128, lane j%16, vector v = (j%128)/16; u is half v%2 of word v/2 of
// Philox(counter = (16*superblock + lane, step, rank, 0), key). Sixteen counters make eight vectors without a shuffle.
#pragma once
#include "philox.h"

namespace {

struct UniformForm {  // U itself
    typedef float Number;
    static inline __attribute__((always_inline)) F16 scale(I16 u) {
        return to_float(u) * splat(0x1p-16f) + splat(0x1p-17f);
    }
    static inline __attribute__((always_inline)) F16 low(I16 w) { return scale(w & splat(0xffff)); }
    static inline __attribute__((always_inline)) F16 high(I16 w) { return scale(shr<16>(w)); }
};
struct IntegerForm {  // 128 u + 64 = U * 2^23: U in units of the last place of an fp32 mantissa
    typedef int32_t Number;
    static inline __attribute__((always_inline)) I16 low(I16 w) { return (shl<7>(w) & splat(0x7fff80)) | splat(64); }
    static inline __attribute__((always_inline)) I16 high(I16 w) { return (shr<9>(w) & splat(0x7fff80)) | splat(64); }
};

template <class Form> struct Dithers {
    typedef typename Form::Number Number;
    enum { SUPERBLOCK = 128, AHEAD = 4 };
    PhiloxStream stream;
    int64_t lo = 0, hi = 0;  // elements that `u` holds
    alignas(64) Number u[SUPERBLOCK * (AHEAD + 1)];

    Dithers(int64_t key, int64_t step, int64_t rank, uint32_t kind = 0)
        : stream((uint32_t)step, (uint32_t)rank, kind, key) {}

    // The dithers of elements j .. j+n-1 (n <= 512) of a piece that ends at `end`. Draws ahead for short blocks.
    const Number* get(int64_t j, int64_t n, int64_t end) {
        if (j < lo || j + n > hi) {
            const int64_t first = j / SUPERBLOCK;
            int64_t last = ceil(j + n), ahead = first + AHEAD;
            if (ahead > ceil(end)) ahead = ceil(end);
            if (ahead > last) last = ahead;
            int64_t s = first;
            for (; s + 2 <= last; s += 2) draw<2>(s, u + (s - first) * SUPERBLOCK);
            if (s < last) draw<1>(s, u + (s - first) * SUPERBLOCK);
            lo = first * SUPERBLOCK, hi = last * SUPERBLOCK;
        }
        return u + (j - lo);
    }

  private:
    static int64_t ceil(int64_t j) { return (j + SUPERBLOCK - 1) / SUPERBLOCK; }
    template <int N> inline __attribute__((always_inline)) void draw(int64_t superblock, Number* to) const {
        I16 w[N][4];
        philox_vectors<N>((uint32_t)(superblock * 16), stream, w);
        for (int n = 0; n < N; n++)
            for (int i = 0; i < 4; i++, to += 32) {
                store(to, Form::low(w[n][i]));
                store(to + 16, Form::high(w[n][i]));
            }
    }
};

typedef Dithers<UniformForm> Dither;
typedef Dithers<IntegerForm> DitherBits;

CC_INLINE I16 load_int(const int32_t* p) { return bits(load((const float*)(const void*)p)); }

}  // namespace
