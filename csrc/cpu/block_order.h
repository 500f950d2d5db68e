// The permuted order of a row of nb blocks: with each = (nb - 1) / ways, block i < ways * each is number i / ways of way
// i % ways. Hands lie one after the other in the order 0, a, 2a, ... modulo ways (a near the golden section of ways and
// coprime to it), so that neighbours come far apart. What is left over follows as it is: the last block, which may be
// short, stays last.
#pragma once
#include "rows.h"

namespace {

struct BlockOrder {
    int64_t ways, stride, each, rest;
    BlockOrder(int64_t numel, int64_t w, int64_t grain) : ways(w), stride(w * 633 >> 10) {
        const int64_t blocks = ceil_div(numel, grain);
        each = blocks ? (blocks - 1) / ways : 0, rest = blocks - ways * each;
        if (stride < 1) stride = 1;
        while (common(stride, ways) != 1) stride++;
    }
    static int64_t common(int64_t a, int64_t b) {
        while (b) {
            const int64_t r = a % b;
            a = b, b = r;
        }
        return a;
    }
    int64_t after(int64_t way) const { return (way + stride) % ways; }
    // The natural number of a permuted block; all numbers are below 2^31.
    int64_t natural(uint32_t permuted) const {
        if (permuted >= (uint64_t)ways * (uint64_t)each) return permuted;
        const uint32_t place = permuted / (uint32_t)each, turn = permuted % (uint32_t)each;
        return (int64_t)((uint64_t)place * (uint64_t)stride % (uint64_t)ways) + ways * turn;
    }
};

}  // namespace
