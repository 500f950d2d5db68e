// Random k of n without a table and without indices on the wire: index m is a keyed permutation's value at m.
//
// The permutation is a Feistel network of six rounds over the next power of four, 256 at least (on 16 values six rounds
// are not fair: pairs differ by 15 %); values outside the row are walked on until they fall inside. 256 values at a time, so that the compiler uses vectors and
// the cache misses of the elements overlap.
#include "rows.h"

namespace {

constexpr int DRAW = 256, ROUNDS = 6;

typedef float loosef __attribute__((aligned(1), may_alias));

struct Permutation {
    uint32_t round_key[8];
    uint64_t numel;
    int half;

    Permutation(const cc_row& r, int64_t step) : numel((uint64_t)r.numel), half(4) {
        for (uint32_t c = 0; c < 2; c++) {
            Philox words = philox(c, (uint32_t)step, (uint32_t)r.offset, 1, r.key);
            memcpy(round_key + 4 * c, words.w, 16);
        }
        while (half < 32 && (numel - 1) >> (2 * half)) half++;
    }

    // One application to n values. Word: 32 bits where the network fits in them.
    template <typename Word> void apply(Word* value, int n) const {
        const uint32_t mask = half == 32 ? 0xffffffffu : (1u << half) - 1;
        for (int j = 0; j < n; j++) {
            uint32_t left = (uint32_t)(value[j] >> half), right = (uint32_t)value[j] & mask;
            for (int i = 0; i < ROUNDS; i++) {
                uint32_t h = right ^ round_key[i];
                h ^= h >> 16;
                h *= 0x85ebca6bu;
                h ^= h >> 13;
                h *= 0xc2b2ae35u;
                h ^= h >> 16;
                uint32_t next = left ^ (h & mask);
                left = right;
                right = next;
            }
            value[j] = (Word)left << half | right;
        }
    }

    // index[j] = permutation(first + j), j < n <= DRAW
    template <typename Word> void draw(int64_t first, int n, Word* index) const {
        Word value[DRAW];
        int where[DRAW];
        for (int j = 0; j < n; j++) value[j] = (Word)(first + j), where[j] = j;
        while (n > 0) {
            apply(value, n);
            int outside = 0;
            for (int j = 0; j < n; j++) {
                Word v = value[j];
                int w = where[j];
                index[w] = v;
                value[outside] = v;
                where[outside] = w;
                outside += v >= numel;
            }
            n = outside;
        }
    }
};

CC_INLINE bool randk_row_valid(const cc_row& r) {
    return r.numel >= 0 && r.numel <= MAX_NUMEL && r.k >= 0 && r.k <= r.numel;
}

// Calls use(first, n, index) for consecutive pieces of the row's k indices.
template <typename Word, typename Use> CC_INLINE void each_draw(const cc_row& r, int64_t step, Use use) {
    const Permutation permutation(r, step);
    Word index[DRAW];
    for (int64_t first = 0; first < r.k; first += DRAW) {
        int n = (int)(r.k - first < DRAW ? r.k - first : DRAW);
        permutation.draw(first, n, index);
        use(first, n, index);
    }
}
template <typename Use> CC_INLINE void each_index(const cc_row& r, int64_t step, Use use) {
    r.numel <= ((int64_t)1 << 32) ? each_draw<uint32_t>(r, step, use) : each_draw<uint64_t>(r, step, use);
}
template <typename Word> CC_INLINE void prefetch(const float* row, const Word* index, int n) {
    for (int j = 0; j < n; j++) __builtin_prefetch(row + index[j], 1);
}

}  // namespace

CC_KERNEL(cc_randk_encode, (CC_ENCODE_PARAMS, const float* gain, int64_t step), (CC_ENCODE_ARGS, gain, step)) {
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!randk_row_valid(r) || !encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, 4 * r.k, true))
            return CC_BAD_ROW(i);
        Seen seen;
        float *y = x + r.x, factor = gain[i];
        write_y(y, r.add >= 0 ? add + r.add : nullptr, r.numel, decay, add_scale, seen);
        seen.report(r, status);
        loosef* values = (loosef*)(wire + r.wire);
        bool overflow = false;
        each_index(r, step, [&](int64_t first, int n, const auto* index) {
            prefetch(y, index, n);
            for (int j = 0; j < n; j++) {
                float value = y[index[j]] * factor;
                bool good = is_finite(value);
                overflow |= !good;
                value = good ? value : 0.0f;
                values[first + j] = value;
                y[index[j]] = y[index[j]] - value;
            }
        });
        if (overflow) status[0] |= 1;
    }
    return 0;
}

CC_KERNEL(cc_randk_decode, (CC_DECODE_PARAMS, int64_t step), (CC_DECODE_ARGS, step)) {
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1) continue;
        if (!randk_row_valid(r) || !decode_row_fits(r, out_numel, wire_bytes, skip_numel, 4 * r.k)) return CC_BAD_ROW(i);
        float* own = out + r.x;
        if (!accumulate) memset(own, 0, sizeof(float) * (size_t)r.numel);
        if (skip[r.index]) continue;
        each_index(r, step, [&](int64_t first, int n, const auto* index) {
            prefetch(own, index, n);
            for (int64_t m = 0; m < messages; m++) {
                const loosef* values = (const loosef*)(wires + m * stride + r.wire) + first;
                for (int j = 0; j < n; j++) own[index[j]] = own[index[j]] + values[j] * scale;
            }
        });
    }
    return 0;
}

// The indices themselves, for tests.
CC_KERNEL(cc_randk_indices, (const cc_row* row, int64_t step, int64_t* out), (row, step, out)) {
    if (!randk_row_valid(*row)) return CC_BAD_ROW(0);
    each_index(*row, step, [&](int64_t first, int n, const auto* index) {
        for (int j = 0; j < n; j++) out[first + j] = (int64_t)index[j];
    });
    return 0;
}
