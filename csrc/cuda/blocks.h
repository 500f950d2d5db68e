// Formats that send a scale per block and a code of a few bits per element: the walk over blocks that their encoders
// share, and the walk over elements of their decoders.
//
// Half a warp has a block: lane l its elements l, 16 + l, 32 + l, ..., which it adds in this order, as the reference's
// tree does; the lanes are then folded 8, 4, 2 and 1 apart. It is also the order in which one Philox call gives eight
// dithers. y stays in registers between the scale and the codes; where a block is too long for that, it is read again.
#pragma once
#include "kernel.h"

namespace {

enum { THREADS = 128, HALVES = THREADS / 16, DECODE_TILE = 2048 };

// Blocks that each half-warp of an encoder treats, one after the other: about 4096 elements to a program.
__host__ __device__ __forceinline__ int64_t rounds(int64_t block) { return block < 512 ? 512 / block : 1; }
__host__ __device__ __forceinline__ int64_t encode_tile(int64_t block) { return HALVES * rounds(block) * block; }

__device__ __forceinline__ float fold_sum(float v) {
    for (int half = 8; half; half /= 2) v += __shfl_xor_sync(ALL, v, half);
    return v;
}
__device__ __forceinline__ float fold_max(float v) {
    for (int half = 8; half; half /= 2) v = fmaxf(v, __shfl_xor_sync(ALL, v, half));
    return v;
}

struct Norms {
    float sizes = 0, squares = 0, largest = 0;  // sum |y|, sum y^2, max |y|
    template <int R> __device__ __forceinline__ void add(const float (&y)[R]) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float size = fabsf(y[r]);
            sizes += size;
            squares += y[r] * y[r];
            largest = fmaxf(largest, size);
        }
    }
    __device__ __forceinline__ void fold() {
        sizes = fold_sum(sizes);
        squares = fold_sum(squares);
        largest = fold_max(largest);
    }
};

// Where y comes from: R elements of a row, 16 apart, from element `at` on; zeros from `left` on.
struct Given {
    Input in;
    template <int R, class Format> __device__ __forceinline__ void fill(float (&y)[R], const Program& p, int64_t at,
                                                                        int64_t left, const Format&, Seen& seen) const {
        const bool has_add = in.add && p.row.add >= 0;
        get_many<R, 16>(y, in.x, in.x_type, p.row.x + at, left);
        float add[R];
        if (has_add) get_many<R, 16>(add, in.add, in.add_type, p.row.add + at, left);
        Seen here;
#pragma unroll
        for (int r = 0; r < R; r++)
            y[r] = combine(y[r], has_add ? add[r] : 0.0f, has_add, in.decay, in.add_scale, here);
        seen.bad |= here.bad;
        seen.alive |= here.alive;
    }
    __device__ __forceinline__ void* x() const { return in.x; }
    __device__ __forceinline__ int x_type() const { return in.x_type; }
};

// The mean of what came from others, under the residual of whoever owns the blocks.
struct Mean {
    void* residual;  // or null
    const uint8_t *wires, *skip;
    const cc_row* from;
    int64_t messages, stride;
    float scale, add_scale;
    int residual_type;
    template <int R, class Format> __device__ __forceinline__ void fill(float (&y)[R], const Program& p, int64_t at,
                                                                        int64_t left, const Format& format,
                                                                        Seen& seen) const {
        float total[R];
#pragma unroll
        for (int r = 0; r < R; r++) {
            total[r] = 0.0f;
            if (!residual) y[r] = 0.0f;
        }
        if (!skip[from[p.r].index])
            for (int64_t m = 0; m < messages; m++) {
                const uint8_t* section = wires + m * stride + from[p.r].wire;
                const auto part = format.part(section, p.row.numel, at / format.block);
#pragma unroll
                for (int r = 0; r < R; r++)
                    if (r * 16 < left) {
                        const float v = part.one(at + r * 16);
                        total[r] = m == 0 ? v : total[r] + v;
                    }
            }
        if (residual) get_many<R, 16>(y, residual, residual_type, p.row.x + at, left);
        Seen here;
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float mean = total[r] * scale;
            y[r] = residual ? combine(y[r], mean, true, 1.0f, add_scale, here)
                            : combine(mean, 0.0f, false, add_scale, 0.0f, here);
        }
        seen.bad |= here.bad;
        seen.alive |= here.alive;
    }
    __device__ __forceinline__ void* x() const { return residual; }
    __device__ __forceinline__ int x_type() const { return residual_type; }
};

// Copies `bytes` bytes that a half-warp has in shared memory to the wire.
__device__ __forceinline__ void copy_out(uint8_t* to, const uint8_t* from, int bytes, int lane) {
    int done = 0;
    if ((uintptr_t)to % 4 == 0) {
        for (int i = lane; i < bytes / 4; i += 16) ((uint32_t*)to)[i] = ((const uint32_t*)from)[i];
        done = bytes / 4 * 4;
    }
    for (int i = done + lane; i < bytes; i += 16) to[i] = from[i];
}

// A program encodes `rounds` times HALVES blocks of one row. R: elements of a block that a lane keeps; LONG: blocks may
// have more. A format gives, beside what decoders need, the scale of a block (`scale`) and codes and values (`emit`).
template <int R, bool LONG, class From, class Format> __global__ void __launch_bounds__(THREADS, 4)  // 128 registers
    encode_blocks(From from, Format format, uint8_t* wire, const cc_row* rows, const int32_t* tiles, uint8_t* status) {
    alignas(16) __shared__ uint8_t staging[HALVES][R * 16 + 16];
    const Program p(rows, tiles);
    const int half = threadIdx.x / 16, lane = threadIdx.x % 16;
    const int64_t block = format.block, numel = p.row.numel, times = rounds(block), blocks = ceil_div(numel, block);
    uint8_t* section = wire + p.row.wire;
    Seen seen;
    for (int64_t round = 0; round < times; round++) {
        const int64_t b = (p.tile * times + round) * HALVES + half, first = b * block;
        const int64_t count = most<int64_t>(0, least(numel - first, block));
        float y[R];
        Norms norms;
        for (int64_t at = 0; at < (LONG ? block : 1); at += R * 16) {
            from.template fill<R>(y, p, first + at + lane, count - at - lane, format, seen);
            norms.add(y);
        }
        norms.fold();
        const auto scale = format.scale(norms, (float)most<int64_t>(count, 1), p.r, seen);
        if (count && lane == 0) put32(section + 4 * b, __float_as_uint(scale.sent));
        const int64_t codes_at = 4 * blocks + b * block * format.bits / 8;
        const int64_t end = b == blocks - 1 ? 4 * blocks + pad4(ceil_div(numel * format.bits, 8))
                                            : codes_at + block * format.bits / 8;  // the last block pads the section
        for (int64_t at = 0; at < (LONG ? block : 1); at += R * 16) {
            Seen twice;
            if (LONG) from.template fill<R>(y, p, first + at + lane, count - at - lane, format, twice);
            const int64_t place = codes_at + at * format.bits / 8;
            const int64_t bytes = count ? least<int64_t>(end - place, R * 2 * format.bits) : 0;
            format.template emit<R>(y, scale, p.row, first + at, count - at, lane, half, staging[half], section + place,
                                    (int)most<int64_t>(bytes, 0));
            if (from.x()) set_many<R, 16>(from.x(), from.x_type(), p.row.x + first + at + lane, count - at - lane, y);
        }
    }
    seen.report(status, p.row.index);
}

template <class From, class Format> int encode(From from, Format format, uint8_t* wire, const cc_row* rows,
                                               const int32_t* tiles, int64_t programs, uint8_t* status, void* stream) {
    if (format.block <= 512)
        return CC_LAUNCH((encode_blocks<32, false, From, Format>), programs, THREADS, stream, from, format, wire, rows,
                         tiles, status);
    return CC_LAUNCH((encode_blocks<32, true, From, Format>), programs, THREADS, stream, from, format, wire, rows,
                     tiles, status);
}

// out = scale * sum of the messages' values, or added to it. A thread has four neighbours, so out is read and written
// 16 bytes at a time, and four such groups at once, so that enough loads are in flight.
template <class Format> __global__ void __launch_bounds__(THREADS)
    decode_blocks(Format format, const uint8_t* wires, int64_t messages, int64_t stride, const cc_row* rows,
                  const int32_t* tiles, const uint8_t* skip, void* out, int type, float scale, bool accumulate) {
    constexpr int GROUPS = DECODE_TILE / THREADS / 4;
    const Program p(rows, tiles);
    const bool skipped = skip[p.row.index] != 0;
    if (skipped && accumulate) return;
    const int64_t numel = p.row.numel, first = p.tile * DECODE_TILE + threadIdx.x * 4;
    float total[GROUPS][4] = {};
    if (!skipped) {
        int64_t block[GROUPS];
#pragma unroll
        for (int g = 0; g < GROUPS; g++) block[g] = format.block_of(first + g * THREADS * 4);
        for (int64_t m = 0; m < messages; m++) {
            const uint8_t* section = wires + m * stride + p.row.wire;
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                const int64_t i = first + g * THREADS * 4;
                if (i >= numel) continue;
                float v[4];
                format.part(section, numel, block[g]).four(i, (int)least<int64_t>(4, numel - i), v);
                for (int j = 0; j < 4; j++) total[g][j] = m == 0 ? v[j] : total[g][j] + v[j];
            }
        }
    }
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int64_t i = first + g * THREADS * 4, at = p.row.x + i;
        if (i >= numel) return;
        const bool whole = numel - i >= 4;
        if (type == F32 && whole && (uintptr_t)((float*)out + at) % 16 == 0) {
            float4* to = (float4*)((float*)out + at);
            float4 r = make_float4(total[g][0] * scale, total[g][1] * scale, total[g][2] * scale, total[g][3] * scale);
            if (accumulate) {
                const float4 old = *to;
                r = make_float4(old.x + r.x, old.y + r.y, old.z + r.z, old.w + r.w);
            }
            *to = r;
            continue;
        }
        float old[4], r[4];
        if (accumulate) get_many<4, 1>(old, out, type, at, numel - i);
        for (int j = 0; j < 4; j++) r[j] = accumulate ? old[j] + total[g][j] * scale : total[g][j] * scale;
        set_many<4, 1>(out, type, at, numel - i, r);
    }
}

// `count` codes of `bits` bits from element i on, a multiple of 4, as one word; never reads behind the last.
__device__ __forceinline__ uint32_t four_codes(const uint8_t* codes, int64_t i, int bits, int count) {
    const uint8_t* p = codes + i / 8 * bits + (i % 8 ? bits / 2 : 0);
    const int shift = i % 8 ? bits % 2 * 4 : 0, bytes = (shift + count * bits + 7) / 8;
    if (bytes == 2 && (uintptr_t)p % 2 == 0) return (uint32_t)(*(const uint16_t*)p) >> shift;
    if (bytes == 4 && (uintptr_t)p % 4 == 0) return *(const uint32_t*)p >> shift;
    uint32_t word = 0;
#pragma unroll
    for (int m = 0; m < 4; m++)
        if (m < bytes) word |= (uint32_t)p[m] << 8 * m;
    return word >> shift;
}

template <class Format> int decode(Format format, const uint8_t* wires, int64_t messages, int64_t stride,
                                   const cc_row* rows, const int32_t* tiles, int64_t programs, const uint8_t* skip,
                                   void* out, int out_type, float scale, int accumulate, void* stream) {
    return CC_LAUNCH((decode_blocks<Format>), programs, THREADS, stream, format, wires, messages, stride, rows, tiles,
                     skip, out, out_type, scale, accumulate != 0);
}

}  // namespace
