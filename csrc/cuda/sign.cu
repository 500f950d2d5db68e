// Sign: one bit per element and a scale per block. Formulas and layout: compcomm/ops/reference/sign.py.
#include "blocks.h"

namespace {

struct Part {  // of one message: a block's scale and the row's bits
    float size;
    const uint8_t* codes;
    __device__ __forceinline__ float one(int64_t i) const { return codes[i / 8] >> i % 8 & 1 ? -size : size; }
    __device__ __forceinline__ void four(int64_t i, int, float (&v)[4]) const {
        const uint32_t word = codes[i / 8] >> i % 8;
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = word >> j & 1 ? -size : size;
    }
};

struct Sign {
    int64_t block;
    int kind;  // of scale: 0 mean |y|, 1 root mean square, 2 sum y^2 / sum |y|
    static constexpr int bits = 1;
    struct Scale {
        float sent;
    };
    __device__ __forceinline__ int64_t block_of(int64_t i) const { return i / block; }
    __device__ __forceinline__ Part part(const uint8_t* section, int64_t numel, int64_t b) const {
        return {__uint_as_float(take32(section + 4 * b)), section + 4 * ceil_div(numel, block)};
    }
    __device__ __forceinline__ Scale scale(const Norms& norms, float count, int, Seen& seen) const {
        float size;
        if (kind == 0) size = norms.sizes / count;
        else if (kind == 1) size = sqrtf(norms.squares / count);
        else size = norms.sizes > 0.0f ? norms.squares / norms.sizes : 0.0f;
        if (finite(size)) return {size};
        seen.bad = true;
        return {0.0f};
    }
    // Bits by ballot: of row r of a block they are 16 neighbours, and lane l collects those of rows 2l and 2l + 1, a
    // word.
    template <int R> __device__ __forceinline__ void emit(float (&y)[R], Scale scale, const cc_row&, int64_t, int64_t,
                                                          int lane, int half, uint8_t*, uint8_t* to, int bytes) const {
        uint32_t words[R / 32] = {};
#pragma unroll
        for (int r = 0; r < R; r++) {
            const bool negative = y[r] < 0.0f;
            const uint32_t mine = __ballot_sync(ALL, negative) >> half % 2 * 16 & 0xffff;
            if (r / 2 % 16 == lane) words[r / 32] |= mine << r % 2 * 16;
            y[r] -= negative ? -scale.sent : scale.sent;
        }
        if ((uintptr_t)to % 4 == 0 && bytes % 4 == 0) {
#pragma unroll
            for (int q = 0; q < R / 32; q++)
                if ((q * 16 + lane) * 4 < bytes) ((uint32_t*)to)[q * 16 + lane] = words[q];
            return;
        }
#pragma unroll
        for (int q = 0; q < R / 32; q++)
            for (int m = 0; m < 4; m++)
                if ((q * 16 + lane) * 4 + m < bytes) to[(q * 16 + lane) * 4 + m] = (uint8_t)(words[q] >> 8 * m);
    }
};

}  // namespace

int cc_cuda_sign_encode(CC_CUDA_ENCODE_PARAMS, int kind, int64_t block, void* stream) {
    return encode(Given{{x, add, x_type, add_type, decay, add_scale}}, Sign{block, kind}, wire, rows, tiles, programs,
                  status, stream);
}
int cc_cuda_sign_reencode(CC_CUDA_REENCODE_PARAMS, int kind, int64_t block, void* stream) {
    return encode(Mean{x, wires, skip, from, messages, stride, scale, add_scale, x_type}, Sign{block, kind}, wire, rows,
                  tiles, programs, status, stream);
}
int cc_cuda_sign_decode(CC_CUDA_DECODE_PARAMS, int64_t block, void* stream) {
    return decode(Sign{block, 0}, wires, messages, stride, rows, tiles, programs, skip, out, out_type, scale,
                  accumulate, stream);
}
