// Dense: the section is the row in fp32. Exact, so nothing is left in x.
#include "decode.h"

namespace {

struct Dense {
    static constexpr int64_t block = 0;
    typedef NoScratch Scratch;
    struct Source {
        const uint8_t* p;
        inline F16 at(int64_t i) const { return load_bytes(p + 4 * i); }
        inline F16 tail(int64_t i, int n) const { return load_bytes(read_tail<64>(p + 4 * i, 4 * n).b); }
    };
    int64_t section(int64_t numel) const { return 4 * numel; }
    Source source(const uint8_t* section, int64_t, int64_t, int64_t first, int64_t, NoScratch&) const {
        return {section + 4 * first};
    }
};

template <bool X, bool ADD> CC_INLINE void encode_row(float* x, const float* add, uint8_t* out, int64_t n, float decay,
                                                      float add_scale, Seen& seen) {
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        const bool full = m == 16;
        F16 a = zero, b = zero, y;
        if (X) a = full ? load(x + i) : load(x + i, m);
        if (ADD) b = full ? load(add + i) : load(add + i, m);
        seen.gradient = seen.gradient | bits(ADD ? b : a);
        if (X) y = keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst);
        else y = keep_finite<false>(s * b, b, s, zero, seen.worst);
        if (full) {
            store_bytes(out + 4 * i, y);
            if (X) store(x + i, zero);
        } else {
            float t[16];
            store(t, y);
            memcpy(out + 4 * i, t, 4 * (size_t)m);
            if (X) store(x + i, zero, m);
        }
    }
}

}  // namespace

CC_KERNEL(cc_dense_encode, (CC_ENCODE_PARAMS), (CC_ENCODE_ARGS)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        const bool has_x = x && row.x >= 0, has_add = add && row.add >= 0;
        if (!encode_row_fits(row, x ? x_numel : MAX_NUMEL * 2, add ? add_numel : MAX_NUMEL * 2, wire_bytes,
                             status_numel, 4 * row.numel, false) ||
            (!has_x && !has_add))
            return CC_BAD_ROW(r);
        Seen seen;
        uint8_t* out = wire + row.wire;
        if (has_x && has_add) encode_row<true, true>(x + row.x, add + row.add, out, row.numel, decay, add_scale, seen);
        else if (has_x) encode_row<true, false>(x + row.x, nullptr, out, row.numel, decay, add_scale, seen);
        else encode_row<false, true>(nullptr, add + row.add, out, row.numel, decay, add_scale, seen);
        seen.report(row, status);
    }
    return 0;
}

CC_KERNEL(cc_dense_decode, (CC_DECODE_PARAMS), (CC_DECODE_ARGS)) { return decode_all(Dense(), CC_DECODE_ARGS); }
