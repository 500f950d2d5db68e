// What all kernels share: is a row inside its tensors, and the input rule  y = decay*x + add_scale*add.
#pragma once
#include "philox.h"

namespace {

CC_INLINE bool inside(int64_t start, int64_t count, int64_t total) {
    return start >= 0 && count >= 0 && start <= total - count;
}

CC_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CC_INLINE int64_t pad4(int64_t bytes) { return (bytes + 3) & ~(int64_t)3; }
enum : int64_t { MAX_NUMEL = (int64_t)1 << 40 };

// Row r of an encoder; `section` is the number of bytes it writes.
CC_INLINE bool encode_row_fits(const cc_row& r, int64_t x_numel, int64_t add_numel, int64_t wire_bytes,
                               int64_t status_numel, int64_t section, bool x_required) {
    if (r.numel < 0 || r.numel > MAX_NUMEL || !inside(r.wire, section, wire_bytes)) return false;
    if (r.x >= 0 ? !inside(r.x, r.numel, x_numel) : x_required) return false;
    if (r.add >= 0 && !inside(r.add, r.numel, add_numel)) return false;
    return r.index >= 0 && r.index < status_numel - 1;
}
CC_INLINE bool decode_row_fits(const cc_row& r, int64_t out_numel, int64_t wire_bytes, int64_t skip_numel,
                               int64_t section) {
    return r.numel >= 0 && r.numel <= MAX_NUMEL && inside(r.wire, section, wire_bytes) &&
           inside(r.x, r.numel, out_numel) && r.index >= 0 && r.index < skip_numel;
}

// y without the rule for non-finite numbers; ADD says whether there is a second term.
template <bool ADD> CC_INLINE F16 combine(F16 x, F16 add, F16 decay, F16 add_scale) {
    return ADD ? decay * x + add_scale * add : decay * x;
}
// The rule: where y is not finite, decay*x if that is finite and there was an add, else 0.
template <bool ADD> CC_INLINE F16 keep_finite(F16 y, F16 x, F16 decay, F16 zero, I16& worst) {
    I16 size = magnitude_bits(y), infinite = splat(INFINITE);
    worst = max(worst, size);
    F16 fallback = zero;
    if (ADD) {
        F16 own = decay * x;
        fallback = select(lt(magnitude_bits(own), infinite), own, zero);
    }
    return select(lt(size, infinite), y, fallback);
}

struct Seen {  // what a row has met: gradient bits (zero or not) and the largest |y| as bits
    I16 gradient = splat(0), worst = splat(0);
    void report(const cc_row& r, uint8_t* status) const {
        if (max_lanes(worst) >= INFINITE) status[0] |= 1;
        if (or_lanes(gradient) & 0x7fffffff) status[1 + r.index] |= 1;
    }
};

// x <- y over n elements, non-finite numbers removed, and `seen` updated. add may be null.
template <bool ADD>
CC_INLINE void write_y(float* x, const float* add, int64_t n, float decay, float add_scale, Seen& seen) {
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        F16 a = load(x + i), b = ADD ? load(add + i) : a;
        seen.gradient = seen.gradient | bits(b);
        store(x + i, keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst));
    }
    if (i < n) {
        int m = (int)(n - i);
        F16 a = load(x + i, m), b = ADD ? load(add + i, m) : a;
        seen.gradient = seen.gradient | bits(b);
        store(x + i, keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst), m);
    }
}
static inline void write_y(float* x, const float* add, int64_t n, float decay, float add_scale, Seen& seen) {
    add ? write_y<true>(x, add, n, decay, add_scale, seen) : write_y<false>(x, nullptr, n, decay, add_scale, seen);
}

}  // namespace
