// The randomised Hadamard transform R = (1/sqrt n) H diag(signs), in blocks of n elements and descending powers of two
// at the end of a row: orthogonal, no padding.
//   forward  z = H (y * (+-c)),  inverse  R^T z = +- H (z * c),  c = fl(n^-1/2)
// The sign of element j of a parameter is bit j%128 of the four words of Philox(counter = (j/128, step, 0, 2), key).
#include <math.h>

#include "butterfly.h"
#include "rows.h"
#include "scratch.h"

namespace {

constexpr float LIMIT = 0x1p64f;  // numbers from here on: the block is sent as zero
constexpr int64_t LARGEST = (int64_t)1 << 20;

class Signs {  // sixteen draws at a time: 2048 signs
    PhiloxStream stream;
    int64_t lo = 0, hi = 0;  // elements whose signs are in `drawn`
    uint8_t drawn[256 + 4];

  public:
    Signs(int64_t key, int64_t step) : stream((uint32_t)step, 0, 2, key) {}
    // The place of element j; the signs of at least 256 elements from there on are ready.
    int64_t begin(int64_t j) {
        if (j < lo || j + 256 > hi) {
            I16 w[1][4];
            int32_t t[4][16], counter[16][4];
            philox_vectors<1>((uint32_t)(j / 128), stream, w);
            for (int i = 0; i < 4; i++) store(t[i], w[0][i]);
            for (int l = 0; l < 16; l++)
                for (int i = 0; i < 4; i++) counter[l][i] = t[i][l];
            memcpy(drawn, counter, sizeof counter);
            lo = j / 128 * 128, hi = lo + 2048;
        }
        return j - lo;
    }
    CC_INLINE uint32_t sixteen(const Signs& s, int64_t place) {
        uint32_t word;
        memcpy(&word, s.drawn + place / 8, 4);
        return word >> (place & 7);
    }
};

// y with its signs and the factor c; y itself goes to x.
template <bool ADD> struct Forward {
    float* x;
    const float* add;
    F16 decay, add_scale, factor;
    Signs& signs;
    int64_t offset;  // of x[0] in its parameter
    Seen& seen;
    I16 largest = splat(0);
    int64_t place = 0;

    inline __attribute__((always_inline)) F16 use(F16 a, F16 b, int64_t i, F16& y) {
        seen.gradient = seen.gradient | bits(b);
        y = keep_finite<ADD>(combine<ADD>(a, b, decay, add_scale), a, decay, splat(0.0f), seen.worst);
        largest = max(largest, magnitude_bits(y));
        return y * flip(factor, Signs::sixteen(signs, place + i));
    }
    inline void begin(int64_t i) { place = signs.begin(offset + i) - i; }
    inline __attribute__((always_inline)) F16 at(int64_t i) {
        const F16 a = load(x + i);
        F16 y, z = use(a, ADD ? load(add + i) : a, i, y);
        store(x + i, y);
        return z;
    }
    inline F16 at(int64_t i, int n) {
        const F16 a = load(x + i, n);
        F16 y, z = use(a, ADD ? load(add + i, n) : a, i, y);
        store(x + i, y, n);
        return z;
    }
};

template <bool ADD>
static inline void forward(float* x, const float* add, int64_t n, float decay, float add_scale, Signs& signs,
                           int64_t offset, Seen& seen, float* t, float* z, uint8_t* status) {
    const float c = (float)(1.0 / sqrt((double)n));
    Forward<ADD> source{x, add, splat(decay), splat(add_scale), splat(c), signs, offset, seen};
    transform(source, n, t);
    if (max_lanes(source.largest) >= as_bits(LIMIT)) {
        status[0] |= 1;
        memset(z, 0, 4 * (size_t)n);
    } else if (t != z) {
        memcpy(z, t, 4 * (size_t)n);
    }
}

struct Inverse {
    const float* z;
    F16 factor;
    inline void begin(int64_t) {}
    inline __attribute__((always_inline)) F16 at(int64_t i) { return load(z + i) * factor; }
    inline F16 at(int64_t i, int n) { return load(z + i, n) * factor; }
};

template <bool ADD>
static inline void inverse(const float* z, int64_t n, Signs& signs, int64_t offset, float* t, float* out, float scale) {
    Inverse source{z, splat((float)(1.0 / sqrt((double)n)))};
    transform(source, n, t);
    const F16 factor = splat(scale);
    for (int64_t from = 0; from < n; from += 256) {
        const int64_t place = signs.begin(offset + from), count = n - from < 256 ? n - from : 256;
        float *o = out + from, *r = t + from;
        int64_t i = 0;
        for (; i + 16 <= count; i += 16) {
            const F16 v = flip(load(r + i), Signs::sixteen(signs, place + i)) * factor;
            store(o + i, ADD ? load(o + i) + v : v);
        }
        if (i < count) {
            const int m = (int)(count - i);
            const F16 v = flip(load(r + i, m), Signs::sixteen(signs, place + i)) * factor;
            store(o + i, ADD ? load(o + i, m) + v : v, m);
        }
    }
}

// Calls use(first, size) for the blocks of a row: whole ones, then descending powers of two.
template <class F> CC_INLINE void each_block(int64_t numel, int64_t block, F use) {
    int64_t at = 0;
    for (; at + block <= numel; at += block) use(at, block);
    for (int64_t size = block / 2; at < numel; size /= 2)
        if (size <= numel - at) use(at, size), at += size;
}

CC_INLINE bool sensible(int64_t block) { return block >= 16 && block <= LARGEST && !(block & (block - 1)); }

template <bool ADD>
int64_t inverse_rows(CC_DECODE_PARAMS, int64_t block, int64_t step) {
    (void)messages, (void)stride, (void)accumulate;
    alignas(64) float own[L1];
    float* t = block <= L1 ? own : (float*)scratch(4 * (size_t)block);
    if (!t) return CC_NO_MEMORY;
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (row.x == -1) continue;
        if (!decode_row_fits(row, out_numel, wire_bytes, skip_numel, 4 * row.numel)) return CC_BAD_ROW(r);
        float* o = out + row.x;
        if (skip[row.index]) {
            if (!ADD) memset(o, 0, 4 * (size_t)row.numel);
            continue;
        }
        Signs signs(row.key, step);
        const float* z = (const float*)(const void*)(wires + row.wire);
        each_block(row.numel, block, [&](int64_t at, int64_t n) {
            inverse<ADD>(z + at, n, signs, row.offset + at, t, o + at, scale);
        });
    }
    return 0;
}

}  // namespace

CC_KERNEL(cc_hadamard_forward, (CC_ENCODE_PARAMS, int64_t block, int64_t step), (CC_ENCODE_ARGS, block, step)) {
    if (!sensible(block)) return CC_BAD_PARAMETER;
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !inside(row.wire, 4 * row.numel, wire_bytes))
            return CC_BAD_ROW(r);
        float *px = x + row.x, *z = (float*)(void*)(wire + row.wire);
        const float* pa = add && row.add >= 0 ? add + row.add : nullptr;
        Signs signs(row.key, step);
        Seen seen;
        alignas(64) float own[L1];  // passes over z itself would wait for its cache lines
        each_block(row.numel, block, [&](int64_t at, int64_t n) {
            float* t = n <= L1 ? own : z + at;
            if (pa) forward<true>(px + at, pa + at, n, decay, add_scale, signs, row.offset + at, seen, t, z + at, status);
            else forward<false>(px + at, nullptr, n, decay, add_scale, signs, row.offset + at, seen, t, z + at, status);
        });
        seen.report(row, status);
    }
    return 0;
}

CC_KERNEL(cc_hadamard_inverse, (CC_DECODE_PARAMS, int64_t block, int64_t step), (CC_DECODE_ARGS, block, step)) {
    if (!sensible(block) || messages != 1) return CC_BAD_PARAMETER;
    return accumulate ? inverse_rows<true>(CC_DECODE_ARGS, block, step)
                      : inverse_rows<false>(CC_DECODE_ARGS, block, step);
}
