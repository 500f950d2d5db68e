// QSGD: uniform levels times a step per block, codes of fixed width. Formulas and layout:
// compcomm/ops/reference/qsgd.py.
#include "blocks.h"
#include "philox.h"

namespace {

struct Part {  // of one message: a block's step and the row's codes
    float step;
    const uint8_t* codes;
    int bits, levels;
    __device__ __forceinline__ float value(uint32_t code) const {
        return (float)((int)(code & ((1u << bits) - 1)) - levels) * step;
    }
    __device__ __forceinline__ float one(int64_t i) const {
        const int64_t bit = i * bits;
        const int shift = (int)(bit % 8);
        uint32_t word = codes[bit / 8];
        if (shift + bits > 8) word |= (uint32_t)codes[bit / 8 + 1] << 8;
        return value(word >> shift);
    }
    __device__ __forceinline__ void four(int64_t i, int count, float (&v)[4]) const {
        const uint32_t word = four_codes(codes, i, bits, count);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = value(word >> j * bits);
    }
};

struct Levels {  // what decoders need
    int64_t block;
    int bits, levels;
    __device__ __forceinline__ int64_t block_of(int64_t i) const { return i / block; }
    __device__ __forceinline__ Part part(const uint8_t* section, int64_t numel, int64_t b) const {
        return {__uint_as_float(take32(section + 4 * b)), section + 4 * ceil_div(numel, block), bits, levels};
    }
};

// Eight codes, a byte each, to the low 8*bits bits: neighbours are pushed together, then pairs, then fours.
__device__ __forceinline__ uint64_t push_together(uint64_t codes, int bits) {
    const uint64_t one = (1ull << bits) - 1, two = (1ull << 2 * bits) - 1, four = (1ull << 4 * bits) - 1;
    codes = (codes & one * 0x0001000100010001ull) | (codes >> (8 - bits) & (one << bits) * 0x0001000100010001ull);
    codes =
        (codes & two * 0x0000000100000001ull) | (codes >> (16 - 2 * bits) & (two << 2 * bits) * 0x0000000100000001ull);
    return (codes & four) | (codes >> (32 - 4 * bits) & four << 4 * bits);
}

template <bool STOCHASTIC> struct Qsgd : Levels {
    const float* gain;
    bool norm2;
    int64_t step, rank;
    struct Scale {
        float sent, inverse;  // the step, and levels / norm
        bool used;
    };
    __device__ __forceinline__ Scale scale(const Norms& norms, float, int r, Seen& seen) const {
        const float norm = norm2 ? sqrtf(norms.squares) : norms.largest, top = (float)levels;
        const float size = norm / top * gain[r];
        const bool small = norm < 0x1p-100f, good = finite(norm) && finite(top * size);
        seen.bad |= !good && !small;
        const bool used = good && !small;
        return {used ? size : 0.0f, top / norm, used};
    }
    // Codes as bytes in shared memory, eight of them pushed together by a lane, then the copy.
    template <int R> __device__ __forceinline__ void emit(float (&y)[R], const Scale& scale, const cc_row& row,
                                                          int64_t first, int64_t left, int lane, int, uint8_t* staging,
                                                          uint8_t* to, int bytes) const {
        Dithers dithers(row.offset + first + lane, step, rank, row.key);
        const float top = (float)levels;
#pragma unroll
        for (int s = 0; s < R; s += 8) {
            float u[8];
            if (STOCHASTIC && s * 16 < left) dithers.eight(u);
#pragma unroll
            for (int r = 0; r < 8; r++) {
                const float t = y[s + r] * scale.inverse;
                float q = STOCHASTIC ? floorf(t + u[r]) : rintf(t);
                q = scale.used ? fminf(fmaxf(q, -top), top) : 0.0f;
                const int code = (int)q;  // an integer: a negative zero must not reach the product
                const int at = (s + r) * 16 + lane;
                staging[at] = at < left ? (uint8_t)(code + levels) : (uint8_t)0;
                y[s + r] -= (float)code * scale.sent;
            }
        }
        __syncwarp();
        if (bits < 8) {
            uint64_t packed[R / 8];
#pragma unroll
            for (int g = 0; g < R / 8; g++) packed[g] = push_together(((const uint64_t*)staging)[g * 16 + lane], bits);
            __syncwarp();
#pragma unroll
            for (int g = 0; g < R / 8; g++) {
                const int at = g * 16 + lane;
                if (bits == 4) ((uint32_t*)staging)[at] = (uint32_t)packed[g];
                else
                    for (int m = 0; m < bits; m++) staging[at * bits + m] = (uint8_t)(packed[g] >> 8 * m);
            }
            __syncwarp();
        }
        copy_out(to, staging, bytes, lane);
        __syncwarp();  // before the next codes
    }
};

template <class From> int encode_as(From from, uint8_t* wire, const cc_row* rows, const int32_t* tiles,
                                    int64_t programs, uint8_t* status, const float* gain, int bits, int levels,
                                    int norm2, int stochastic, int64_t block, int64_t step, int64_t rank,
                                    void* stream) {
    const Levels set{block, bits, levels};
    return stochastic ? encode(from, Qsgd<true>{set, gain, norm2 != 0, step, rank}, wire, rows, tiles, programs, status,
                               stream)
                      : encode(from, Qsgd<false>{set, gain, norm2 != 0, step, rank}, wire, rows, tiles, programs,
                               status, stream);
}

}  // namespace

int cc_cuda_qsgd_encode(CC_CUDA_ENCODE_PARAMS, const float* gain, int bits, int levels, int norm2, int stochastic,
                        int64_t block, int64_t step, int64_t rank, void* stream) {
    return encode_as(Given{{x, add, x_type, add_type, decay, add_scale}}, wire, rows, tiles, programs, status, gain,
                     bits, levels, norm2, stochastic, block, step, rank, stream);
}
int cc_cuda_qsgd_reencode(CC_CUDA_REENCODE_PARAMS, const float* gain, int bits, int levels, int norm2, int stochastic,
                        int64_t block, int64_t step, int64_t rank, void* stream) {
    return encode_as(Mean{x, wires, skip, from, messages, stride, scale, add_scale, x_type}, wire, rows, tiles,
                     programs, status, gain, bits, levels, norm2, stochastic, block, step, rank, stream);
}
int cc_cuda_qsgd_decode(CC_CUDA_DECODE_PARAMS, int bits, int levels, int64_t block, void* stream) {
    return decode(Levels{block, bits, levels}, wires, messages, stride, rows, tiles, programs, skip, out, out_type,
                  scale, accumulate, stream);
}
