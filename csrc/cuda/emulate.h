// CUDA's language for a C++ compiler (-DCC_EMULATE), so that tests run the very same kernels on the host: test
// equipment, never installed.
//
// The blocks of a launch run one after the other. The threads of a block are fibers that run, warp by warp and lane by
// lane, to the next barrier: __syncthreads, or anything that a whole warp does together. What is missing: divergent
// warps at such a barrier (a deadlock, which is reported), races between barriers (lanes run in order), and speed.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>
#include <ucontext.h>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

struct Thread {
    ucontext_t start;
    jmp_buf at;
    std::unique_ptr<char[]> stack;
    bool started = false, done = false;
};
struct Warp {  // what its lanes give to each other: two sets, since a lane may be one exchange ahead of the others
    uint64_t slot[2][32];
    unsigned arrived = 0, generation = 0;
};

enum { STACK = 256 << 10, MOST = 1024 };
inline std::mutex one_at_a_time;
inline std::vector<Thread> threads;
inline Warp warps[MOST / 32];
inline jmp_buf scheduler;
inline const std::function<void()>* kernel;
inline unsigned now, arrived, generation, progress, count;
inline uint3 block, grid;

__attribute__((noinline)) inline void yield() {
    if (!_setjmp(threads[now].at)) _longjmp(scheduler, 1);
}
inline void live() {  // a fiber runs a thread of each block in turn
    for (;;) {
        (*kernel)();
        threads[now].done = true;
        progress++;
        yield();
    }
}
__attribute__((noinline)) inline void resume(unsigned t) {
    now = t;
    if (_setjmp(scheduler)) return;
    if (threads[t].started) _longjmp(threads[t].at, 1);
    threads[t].started = true;
    setcontext(&threads[t].start);
}
inline void prepare(unsigned n) {
    while (threads.size() < n) {
        threads.emplace_back();
        Thread& t = threads.back();
        t.stack.reset(new char[STACK]);
        getcontext(&t.start);
        t.start.uc_stack.ss_sp = t.stack.get();
        t.start.uc_stack.ss_size = STACK;
        t.start.uc_link = nullptr;
        makecontext(&t.start, live, 0);
    }
}
inline void launch(unsigned blocks, unsigned n, const std::function<void()>& body) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (n == 0 || n % 32 || n > MOST) {
        fprintf(stderr, "emulator: blocks of %u threads, but they have whole warps, 1024 at most\n", n);
        abort();
    }
    threads.reserve(MOST);
    prepare(n);
    kernel = &body;
    count = n;
    grid = {blocks, 1, 1};
    for (unsigned b = 0; b < blocks; b++) {
        block = {b, 0, 0};
        for (unsigned t = 0; t < n; t++) threads[t].done = false;
        for (unsigned left = n; left;) {
            const unsigned before = progress;
            left = 0;
            for (unsigned t = 0; t < n; t++) {
                if (!threads[t].done) resume(t);
                left += !threads[t].done;
            }
            if (progress == before) {
                fprintf(stderr, "emulator: the threads of block %u wait for each other\n", b);
                abort();
            }
        }
    }
}
inline void barrier() {
    const unsigned g = generation;
    if (++arrived == count) arrived = 0, generation++, progress++;
    else
        while (generation == g) yield();
}
// What every lane of this warp gives; valid until the warp's next exchange but one.
inline const uint64_t* exchange(uint64_t mine) {
    Warp& w = warps[now / 32];
    const unsigned g = w.generation;
    w.slot[g & 1][now % 32] = mine;
    if (++w.arrived == 32) w.arrived = 0, w.generation++, progress++;
    else
        while (w.generation == g) yield();
    return w.slot[g & 1];
}
template <class T> T as(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> uint64_t bits(T value) {
    uint64_t b = 0;
    memcpy(&b, &value, sizeof value);
    return b;
}

}  // namespace emulator

#define threadIdx (uint3{emulator::now, 0, 0})
#define blockIdx emulator::block
#define blockDim (uint3{emulator::count, 1, 1})
#define gridDim emulator::grid

static inline void __syncthreads() { emulator::barrier(); }
static inline void __syncwarp() { emulator::exchange(0); }
static inline void __threadfence() {}
template <class T> T __shfl_sync(unsigned, T value, int lane) {
    return emulator::as<T>(emulator::exchange(emulator::bits(value))[lane & 31]);
}
template <class T> T __shfl_xor_sync(unsigned, T value, int other) {
    const unsigned lane = emulator::now % 32;
    return emulator::as<T>(emulator::exchange(emulator::bits(value))[lane ^ other]);
}
template <class T> T __shfl_up_sync(unsigned, T value, unsigned by) {
    const unsigned lane = emulator::now % 32;
    return emulator::as<T>(emulator::exchange(emulator::bits(value))[lane < by ? lane : lane - by]);
}
static inline unsigned __ballot_sync(unsigned, bool condition) {
    const uint64_t* all = emulator::exchange(condition);
    unsigned mask = 0;
    for (int lane = 0; lane < 32; lane++) mask |= (unsigned)all[lane] << lane;
    return mask;
}
static inline bool __any_sync(unsigned all, bool condition) { return __ballot_sync(all, condition) != 0; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline float __uint_as_float(unsigned x) { return emulator::as<float>(x); }
static inline unsigned __float_as_uint(float x) { return (unsigned)emulator::bits(x); }
template <class T> T atomicAdd(T* at, T by) {
    const T old = *at;
    *at = old + by;
    return old;
}
template <class T> T atomicMax(T* at, T by) {
    const T old = *at;
    *at = old < by ? by : old;
    return old;
}
