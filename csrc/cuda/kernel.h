// What all kernels share: how they are launched, rows, the types of tensors, the input rule. What they compute is
// defined in compcomm/ops/reference; sums that decide scales follow its fixed tree, so results have the same bits.
#pragma once
#include "compcomm_cuda.h"
#ifdef CC_EMULATE
#include "emulate.h"
#define CC_LAUNCH(kernel, grid, block, stream, ...) \
    ((void)(stream), emulator::launch((unsigned)(grid), (block), [=] { kernel(__VA_ARGS__); }), 0)
#else
#include <cuda_runtime.h>
// Launches where there is work; gives the error code.
#define CC_LAUNCH(kernel, grid, block, stream, ...) \
    ((grid) == 0                                    \
         ? 0                                        \
         : (kernel<<<(unsigned)(grid), (block), 0, (cudaStream_t)(stream)>>>(__VA_ARGS__), (int)cudaGetLastError()))
#endif

namespace {

enum Type { F32, BF16, F16 };
enum : unsigned { ALL = 0xffffffffu };  // every lane of a warp

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ __forceinline__ int64_t pad4(int64_t bytes) { return (bytes + 3) & ~(int64_t)3; }
template <class T> __host__ __device__ __forceinline__ T least(T a, T b) { return a < b ? a : b; }
template <class T> __host__ __device__ __forceinline__ T most(T a, T b) { return a > b ? a : b; }
__device__ __forceinline__ bool finite(float y) { return fabsf(y) < INFINITY; }

// Which row, and which tile of it, this program treats.
struct Program {
    int r;
    int64_t tile;
    cc_row row;
    __device__ __forceinline__ Program(const cc_row* rows, const int32_t* tiles)
        : r(tiles[2 * (int64_t)blockIdx.x]), tile(tiles[2 * (int64_t)blockIdx.x + 1]), row(rows[r]) {}
};

#ifdef CC_EMULATE
__device__ inline uint16_t half_bits(float y) {  // rounded half to even
    const uint32_t u = __float_as_uint(y), sign = u >> 16 & 0x8000, size = u & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7fff);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000)  // a denormal or zero: the addition rounds to multiples of 2^-24
        return (uint16_t)(sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}
__device__ inline float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, size = h & 0x7fff;
    if (size >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | size << 13);
    const float value = __uint_as_float(size << 13) * 0x1p112f;
    return __uint_as_float(sign | __float_as_uint(value));
}
#else
__device__ __forceinline__ uint16_t half_bits(float y) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(y));
    return h;
}
__device__ __forceinline__ float from_half(uint16_t h) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(h));
    return y;
}
#endif
__device__ __forceinline__ uint16_t bfloat_bits(float y) {
    const uint32_t u = __float_as_uint(y);
    return y == y ? (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16) : (uint16_t)0x7fc0;
}
__device__ __forceinline__ float from_bfloat(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }

__device__ __forceinline__ float get(const void* tensor, int type, int64_t i) {
    if (type == F32) return ((const float*)tensor)[i];
    const uint16_t h = ((const uint16_t*)tensor)[i];
    return type == BF16 ? from_bfloat(h) : from_half(h);
}
__device__ __forceinline__ void set(void* tensor, int type, int64_t i, float y) {
    if (type == F32) ((float*)tensor)[i] = y;
    else ((uint16_t*)tensor)[i] = type == BF16 ? bfloat_bits(y) : half_bits(y);
}
// v[r] = element at + r*STEP of a tensor, zero from r*STEP >= left on. One branch on the type, so that all loads are in
// flight at once.
template <int N, int STEP>
__device__ __forceinline__ void get_many(float (&v)[N], const void* tensor, int type, int64_t at, int64_t left) {
    if (type == F32) {
        const float* p = (const float*)tensor + at;
#pragma unroll
        for (int r = 0; r < N; r++) v[r] = r * STEP < left ? p[r * STEP] : 0.0f;
        return;
    }
    const uint16_t* p = (const uint16_t*)tensor + at;
    uint16_t h[N];
#pragma unroll
    for (int r = 0; r < N; r++) h[r] = r * STEP < left ? p[r * STEP] : (uint16_t)0;
#pragma unroll
    for (int r = 0; r < N; r++) v[r] = type == BF16 ? from_bfloat(h[r]) : from_half(h[r]);
}
template <int N, int STEP>
__device__ __forceinline__ void set_many(void* tensor, int type, int64_t at, int64_t left, const float (&v)[N]) {
    if (type == F32) {
        float* p = (float*)tensor + at;
#pragma unroll
        for (int r = 0; r < N; r++)
            if (r * STEP < left) p[r * STEP] = v[r];
        return;
    }
    uint16_t* p = (uint16_t*)tensor + at;
#pragma unroll
    for (int r = 0; r < N; r++)
        if (r * STEP < left) p[r * STEP] = type == BF16 ? bfloat_bits(v[r]) : half_bits(v[r]);
}

// What a thread has met.
struct Seen {
    bool bad = false, alive = false;
    // To status[0] and status[1 + index]; all threads of a warp together. Others set the same bit, if any.
    __device__ __forceinline__ void report(uint8_t* status, int64_t index) const {
        const bool any_bad = __any_sync(ALL, bad), any_alive = __any_sync(ALL, alive);
        if (threadIdx.x % 32) return;
        if (any_bad) status[0] |= 1;
        if (any_alive) status[1 + index] |= 1;
    }
};

// y = decay*x + add_scale*add. Where that is not finite: decay*x if that is and there was an add, else 0.
__device__ __forceinline__ float combine(float x, float add, bool has_add, float decay, float add_scale, Seen& seen) {
    const float own = x * decay, y = has_add ? own + add * add_scale : own;
    seen.alive |= (has_add ? add : x) != 0.0f;
    if (finite(y)) return y;
    seen.bad = true;
    return has_add && finite(own) ? own : 0.0f;
}

// Tensors of the caller's, as encoders read them; and where y goes less what was sent.
struct Input {
    void* x;
    const void* add;
    int x_type, add_type;
    float decay, add_scale;
};

__device__ __forceinline__ void put32(uint8_t* to, uint32_t bits) {  // at any address
    if ((uintptr_t)to % 4 == 0) {
        *(uint32_t*)to = bits;
        return;
    }
    for (int b = 0; b < 4; b++) to[b] = (uint8_t)(bits >> 8 * b);
}
__device__ __forceinline__ uint32_t take32(const uint8_t* from) {
    if ((uintptr_t)from % 4 == 0) return *(const uint32_t*)from;
    return from[0] | from[1] << 8 | from[2] << 16 | (uint32_t)from[3] << 24;
}

}  // namespace
