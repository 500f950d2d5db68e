// Blocks in the order of the ways: see block_order.h for the order.
// One pass: y = decay*x + add_scale*add goes to x, as it is, and permuted to z.
#include "block_order.h"

namespace {

template <bool X, bool ADD>
static void permute(float* x, const float* add, uint8_t* to, int64_t n, int64_t ways, int64_t grain, float decay,
                 float add_scale, Seen& seen) {
    const BlockOrder order(n, ways, grain);
    const F16 d = splat(decay), s = splat(add_scale), zero = splat(0.0f);
    // written in order, read from as many places as a way has blocks
    for (int64_t place = 0, way = 0; place <= ways; place++, way = order.after(way))
        for (int64_t turn = 0; turn < (place < ways ? order.each : order.rest); turn++) {
            const int64_t block = place < ways ? way + ways * turn : ways * order.each + turn;
            const int64_t begin = block * grain, end = n - begin < grain ? n : begin + grain;
            for (int64_t i = begin; i < end; i += 16) {
                const int m = (int)(end - i < 16 ? end - i : 16);
                F16 a = zero, b = zero, y;
                if (X) a = m == 16 ? load(x + i) : load(x + i, m);
                if (ADD) b = m == 16 ? load(add + i) : load(add + i, m);
                seen.gradient = seen.gradient | bits(ADD ? b : a);
                if (X) y = keep_finite<ADD>(combine<ADD>(a, b, d, s), a, d, zero, seen.worst);
                else y = keep_finite<false>(s * b, b, s, zero, seen.worst);
                if (m == 16) {
                    store((float*)(void*)to, y);
                    if (X) store(x + i, y);
                } else {
                    store((float*)(void*)to, y, m);
                    if (X) store(x + i, y, m);
                }
                to += 4 * m;
            }
        }
}

}  // namespace

CC_KERNEL(cc_permute_blocks, (CC_ENCODE_PARAMS, int64_t grain), (CC_ENCODE_ARGS, grain)) {
    if (grain <= 0 || grain % 16) return CC_BAD_PARAMETER;
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        const bool has_x = x && row.x >= 0, has_add = add && row.add >= 0;
        if (!encode_row_fits(row, x ? x_numel : MAX_NUMEL * 2, add ? add_numel : MAX_NUMEL * 2, wire_bytes,
                             status_numel, 4 * row.numel, false) ||
            (!has_x && !has_add) || row.k < 1 || row.k > MAX_NUMEL)
            return CC_BAD_ROW(r);
        Seen seen;
        uint8_t* z = wire + row.wire;
        if (has_x && has_add) permute<true, true>(x + row.x, add + row.add, z, row.numel, row.k, grain, decay, add_scale, seen);
        else if (has_x) permute<true, false>(x + row.x, nullptr, z, row.numel, row.k, grain, decay, add_scale, seen);
        else permute<false, true>(nullptr, add + row.add, z, row.numel, row.k, grain, decay, add_scale, seen);
        seen.report(row, status);
    }
    return 0;
}
