// Philox4x32-10 and the dithers of stochastic rounding: compcomm/ops/reference/philox.py.
#pragma once
#include "kernel.h"

namespace {

struct Words {
    uint32_t a, b, c, d;
};
__device__ __forceinline__ Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)((uint64_t)key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        const uint32_t high1 = __umulhi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}

// U = (u + 1/2) / 65536 for the elements first, first + 16, first + 32, ... of a parameter, in order. They share a
// lane, so a call gives the next eight; where `first` lies inside a superblock, two calls overlap.
struct Dithers {
    uint32_t c0, step, rank;
    int64_t key;
    int v;  // of the vectors of its superblock, which one holds `first`
    Words now;
    __device__ __forceinline__ Dithers(int64_t first, int64_t step_, int64_t rank_, int64_t key_)
        : c0((uint32_t)(first / 128 * 16 + first % 16)),
          step((uint32_t)step_),
          rank((uint32_t)rank_),
          key(key_),
          v((int)(first % 128 / 16)),
          now(philox(c0, step, rank, 0, key_)) {}
    __device__ __forceinline__ void eight(float (&u)[8]) {
        c0 += 16;
        const Words next = philox(c0, step, rank, 0, key);
#pragma unroll
        for (int r = 0; r < 8; r++) {
            const int h = (v + r) & 7;
            const uint32_t before = h & 4 ? (h & 2 ? now.d : now.c) : (h & 2 ? now.b : now.a);
            const uint32_t after = h & 4 ? (h & 2 ? next.d : next.c) : (h & 2 ? next.b : next.a);
            const uint32_t word = v + r < 8 ? before : after;
            u[r] = (float)(word >> (h & 1) * 16 & 0xffff) * 0x1p-16f + 0x1p-17f;
        }
        now = next;
    }
};

}  // namespace
