// Cast: the section is the row in bfloat16 or float16; what the rounding lost stays in x.
// A finite y that rounds to infinity is sent as zero and reported in status[0].
#include "decode.h"
#include "half.h"

namespace {

template <class H> struct Cast {
    static constexpr int64_t block = 0;
    typedef NoScratch Scratch;
    struct Source {
        const uint8_t* p;
        inline F16 at(int64_t i) const { return H::unpack(load_u16(p + 2 * i)); }
        inline F16 tail(int64_t i, int n) const { return H::unpack(load_u16(read_tail<32>(p + 2 * i, 2 * n).b)); }
    };
    int64_t section(int64_t numel) const { return pad4(2 * numel); }
    Source source(const uint8_t* section, int64_t, int64_t, int64_t first, int64_t, NoScratch&) const {
        return {section + 2 * first};
    }
};

template <class H, bool ADD> CC_INLINE void encode_row(float* x, const float* add, uint8_t* out, int64_t n, float decay,
                                                       float add_scale, Seen& seen) {
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    const I16 inf = splat(H::INF), none = splat(0), bad = splat(INFINITE);
    for (int64_t i = 0; i < n; i += 16) {
        const int m = (int)(n - i < 16 ? n - i : 16);
        const bool full = m == 16;
        F16 a = full ? load(x + i) : load(x + i, m), b = a;
        if (ADD) b = full ? load(add + i) : load(add + i, m);
        seen.gradient = seen.gradient | bits(b);
        F16 y = keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst);
        I16 h = H::pack_number(y);  // what was no number is none of y
        Mask fits = lt(h & splat(0x7fff), inf);
        seen.worst = max(seen.worst, bits(select(fits, floats(none), floats(bad))));
        h = bits(select(fits, floats(h), floats(none)));
        F16 left = y - H::unpack(h);
        if (full) {
            store_u16(out + 2 * i, h);
            store(x + i, left);
        } else {
            uint16_t t[16];
            store_u16(t, h);
            memcpy(out + 2 * i, t, 2 * (size_t)m);
            store(x + i, left, m);
        }
    }
    memset(out + 2 * n, 0, (size_t)(pad4(2 * n) - 2 * n));
}

template <class H> int64_t encode(CC_ENCODE_PARAMS) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel,
                             pad4(2 * row.numel), true))
            return CC_BAD_ROW(r);
        Seen seen;
        uint8_t* out = wire + row.wire;
        if (add && row.add >= 0) encode_row<H, true>(x + row.x, add + row.add, out, row.numel, decay, add_scale, seen);
        else encode_row<H, false>(x + row.x, nullptr, out, row.numel, decay, add_scale, seen);
        seen.report(row, status);
    }
    return 0;
}

}  // namespace

CC_KERNEL(cc_cast_encode, (CC_ENCODE_PARAMS, int half), (CC_ENCODE_ARGS, half)) {
    return half ? encode<Float16>(CC_ENCODE_ARGS) : encode<BFloat16>(CC_ENCODE_ARGS);
}
CC_KERNEL(cc_cast_decode, (CC_DECODE_PARAMS, int half), (CC_DECODE_ARGS, half)) {
    return half ? decode_all(Cast<Float16>(), CC_DECODE_ARGS) : decode_all(Cast<BFloat16>(), CC_DECODE_ARGS);
}
