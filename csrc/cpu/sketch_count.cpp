// Count sketch (Charikar, Chen, Farach-Colton 2002): each element has one of k sums, and a sign.
// Element j of a parameter takes word j%64/16 of Philox(counter = (j/64*16 + j%16, step, 0, 3), key):
// the sum is ((word >> 1) * k) >> 31, the sign bit 0 of the word. Sums grow in the order of j.
#include "sketch.h"

namespace {

class Places {
    PhiloxStream stream;
    int64_t k;

  public:
    enum { CHUNK = 64 };
    uint32_t sum[CHUNK], sign[CHUNK];  // sign: 0 or the sign bit

    Places(const cc_row& r, int64_t step) : stream((uint32_t)step, 0, 3, r.key), k(r.k) {}
    // Those of the elements chunk*64 .. chunk*64 + 63.
    void draw(int64_t chunk) {
        I16 w[1][4];
        philox_vectors<1>((uint32_t)(chunk * 16), stream, w);
        for (int i = 0; i < 4; i++) store((int32_t*)sum + 16 * i, w[0][i]);
        for (int i = 0; i < CHUNK; i++) {
            sign[i] = sum[i] << 31;
            sum[i] = (uint32_t)((uint64_t)(sum[i] >> 1) * (uint64_t)k >> 31);
        }
    }
};

CC_INLINE float signed_as(float a, uint32_t sign) { return as_float((int32_t)((uint32_t)as_bits(a) ^ sign)); }

// Calls use(element of the row, sum, sign) for all elements in order; prefetch(sum) some before.
template <class Ahead, class Use> CC_INLINE void each_element(const cc_row& r, int64_t step, Ahead ahead, Use use) {
    Places places(r, step);
    int64_t i = 0;
    for (int64_t chunk = r.offset / Places::CHUNK; i < r.numel; chunk++) {
        places.draw(chunk);
        const int from = (int)(r.offset + i - chunk * Places::CHUNK);
        const int64_t rest = r.numel - i, room = Places::CHUNK - from;
        const int to = from + (int)(rest < room ? rest : room);
        for (int e = from; e < to; e++) ahead(places.sum[e]);
        for (int e = from; e < to; e++, i++) use(i, places.sum[e], places.sign[e]);
    }
}

}  // namespace

CC_KERNEL(cc_count_encode, (CC_ENCODE_PARAMS, const float* gain, int64_t step), (CC_ENCODE_ARGS, gain, step)) {
    for (int64_t i = 0; i < nrows; i++) {
        cc_row r = rows[i];
        if (!add) r.add = -1;
        if (!sums_valid(r) || !encode_row_fits(r, x_numel, add_numel, wire_bytes, status_numel, 4 * r.k, true))
            return CC_BAD_ROW(i);
        float* y = x + r.x;
        if (!sketch_input(r, y, r.add >= 0 ? add + r.add : nullptr, wire + r.wire, status, decay, add_scale)) continue;
        loosef* sums = (loosef*)(wire + r.wire);
        memset(wire + r.wire, 0, 4 * (size_t)r.k);
        const auto ahead = [=](uint32_t s) { __builtin_prefetch(sums + s, 1); };
        each_element(r, step, ahead, [=](int64_t e, uint32_t s, uint32_t sign) { sums[s] += signed_as(y[e], sign); });
        for (int64_t s = 0; s < r.k; s++) sums[s] = sums[s] * gain[i];
        each_element(r, step, ahead, [=](int64_t e, uint32_t s, uint32_t sign) { y[e] -= signed_as(sums[s], sign); });
    }
    return 0;
}

CC_KERNEL(cc_count_decode, (CC_DECODE_PARAMS, int64_t step), (CC_DECODE_ARGS, step)) {
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1) continue;
        if (!sums_valid(r) || !decode_row_fits(r, out_numel, wire_bytes, skip_numel, 4 * r.k)) return CC_BAD_ROW(i);
        float* own = out + r.x;
        if (skip[r.index]) {
            if (!accumulate) memset(own, 0, sizeof(float) * (size_t)r.numel);
            continue;
        }
        const uint8_t* first = wires + r.wire;
        each_element(
            r, step, [=](uint32_t s) { __builtin_prefetch(first + 4 * (int64_t)s); },
            [=](int64_t e, uint32_t s, uint32_t sign) {
                float total = ((const loosef*)first)[s];
                for (int64_t m = 1; m < messages; m++) total = total + ((const loosef*)(first + m * stride))[s];
                total = signed_as(total, sign) * scale;
                own[e] = accumulate ? own[e] + total : total;
            });
    }
    return 0;
}
