// Dithers of random rounding in integer arithmetic: 128 u + 64, u the sixteen bits that dither.h makes U = (u + 1/2) /
// 65536 of; so these are U * 2^23, in units of the last place of an fp32 mantissa. The order of the elements is the same.
#pragma once
#include "philox.h"

namespace {

struct DitherBits {
    enum { SUPERBLOCK = 128, AHEAD = 4 };
    PhiloxStream stream;
    int64_t lo = 0, hi = 0;  // elements that `u` holds
    alignas(64) int32_t u[SUPERBLOCK * (AHEAD + 1)];

    DitherBits(int64_t key, int64_t step, int64_t rank) : stream((uint32_t)step, (uint32_t)rank, 0, key) {}

    // The dithers of elements j .. j+n-1 (n <= 512) of a piece that ends at `end`. Draws ahead for short blocks.
    const int32_t* get(int64_t j, int64_t n, int64_t end) {
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
    template <int N> inline __attribute__((always_inline)) void draw(int64_t superblock, int32_t* to) const {
        const I16 half = splat(64), field = splat(0x7fff80);
        I16 w[N][4];
        philox_vectors<N>((uint32_t)(superblock * 16), stream, w);
        for (int n = 0; n < N; n++)
            for (int i = 0; i < 4; i++, to += 32) {
                store(to, (shl<7>(w[n][i]) & field) | half);
                store(to + 16, (shr<9>(w[n][i]) & field) | half);
            }
    }
};

CC_INLINE I16 load_int(const int32_t* p) { return bits(load((const float*)(const void*)p)); }

}  // namespace
