// Top-k, exactly: formulas and layout in compcomm/ops/reference/topk.py. Seven launches, however many rows:
//
//   clear    the scratch memory that must begin at zero
//   probe    per row: a low guess of the k-th largest magnitude, from a sample that hits each region of the row
//   sweep    the only pass over x and add: y goes to x, and what reaches the guess to the row's list
//   radix    three times: 11, 10 and 10 more bits of the k-th largest magnitude; a row's last program looks them up
//   compact  the message, in one pass: a tile's place follows from what the tiles before it have published
//
// A row whose list turned out too short or too long is read again instead of it, with the same result; so is one whose
// k is too large for a list. Traffic in DRAM per element, fp32, k far below numel: 12 bytes and a few bytes per
// candidate. An x of half precision cannot hold y: y is computed anew where it is needed, and `compact` makes x from
// it.
#include "kernel.h"

namespace {

enum { THREADS = 256, WARPS = THREADS / 32, EACH = 16, TILE = THREADS * EACH, STRETCH = 65536, SAMPLES = 8192 };
enum { ROUNDS = 3, BINS = 4096, GUESS = 4096 };  // bins of a row for all rounds, and of the guess

struct State {                // of a row; begins at zero
    uint32_t low;             // what a candidate reaches
    uint32_t found;           // candidates, also those that found no room
    uint32_t prefix[ROUNDS];  // the top bits of the k-th largest after each round,
    uint32_t rank[ROUNDS];    // and which of those with these bits it is (from 1)
    uint32_t done[ROUNDS];    // programs that have counted
    uint32_t unused[5];
};
struct List {  // of a row, made by the host: where it begins, and for how many candidates it has room (0: no list)
    int64_t begin, capacity;
};

// Scratch memory, in this order; as far as `begin` it begins at zero.
struct Scratch {
    uint64_t* seen;  // per tile: what it has published for the tiles behind it
    State* state;    // per row
    uint32_t *bins, *ticket;
    uint32_t *begin, *length;  // per tile: its part of the row's list
    float* value;              // the lists: y,
    uint16_t* place;           // and where in its tile
    __host__ __device__ Scratch(uint8_t* p, int64_t nrows, int64_t programs, int64_t candidates) {
        seen = (uint64_t*)p;
        state = (State*)(seen + programs);
        bins = (uint32_t*)(state + nrows);
        ticket = bins + nrows * BINS;
        begin = ticket + 4;
        length = begin + programs;
        value = (float*)(length + programs);
        place = (uint16_t*)(value + candidates);
    }
};

struct Source {  // y, before the sweep and after it
    Input in;
    __device__ __forceinline__ float one(const cc_row& row, int64_t i, Seen& seen) const {
        const bool has_add = in.add && row.add >= 0;
        return combine(get(in.x, in.x_type, row.x + i), has_add ? get(in.add, in.add_type, row.add + i) : 0.0f, has_add,
                       in.decay, in.add_scale, seen);
    }
    // Elements at, at + 32, at + 64, ...; zeros from `left` on.
    __device__ __forceinline__ void many(float (&y)[EACH], const cc_row& row, int64_t at, int64_t left,
                                         Seen& seen) const {
        const bool has_add = in.add && row.add >= 0;
        float add[EACH];
        get_many<EACH, 32>(y, in.x, in.x_type, row.x + at, left);
        if (has_add) get_many<EACH, 32>(add, in.add, in.add_type, row.add + at, left);
#pragma unroll
        for (int r = 0; r < EACH; r++)
            y[r] = combine(y[r], has_add ? add[r] : 0.0f, has_add, in.decay, in.add_scale, seen);
    }
};

__device__ __forceinline__ uint32_t magnitude(float y) { return __float_as_uint(y) & 0x7fffffff; }
__device__ __forceinline__ bool is_listed(const State& s, const List& list, int64_t k) {
    return list.capacity && s.found >= k && s.found <= list.capacity;
}
__device__ __forceinline__ uint32_t below() { return (1u << threadIdx.x % 32) - 1; }  // the lanes before this one

// The bin from the top that holds the element of this rank (from 1), and its rank inside; all threads together. Where
// all bins together hold fewer: bin 0.
template <int N> __device__ void locate(const volatile uint32_t* bins, uint32_t rank, uint32_t& bin, uint32_t& inside) {
    constexpr int PER = N / THREADS;
    __shared__ uint32_t of_warp[WARPS], found[2];
    const int t = threadIdx.x, lane = t % 32, first = N - 1 - t * PER;
    uint32_t mine = 0;
    for (int j = 0; j < PER; j++) mine += bins[first - j];
    uint32_t upto = mine;
    for (int by = 1; by < 32; by *= 2) {
        const uint32_t other = __shfl_up_sync(ALL, upto, by);
        if (lane >= by) upto += other;
    }
    if (lane == 31) of_warp[t / 32] = upto;
    if (t == 0) found[0] = 0, found[1] = 1;
    __syncthreads();
    for (int w = 0; w < t / 32; w++) upto += of_warp[w];
    if (upto >= rank && upto - mine < rank) {
        uint32_t left = rank - (upto - mine);
        int b = first;
        for (uint32_t n = bins[b]; n < left; n = bins[b]) left -= n, b--;
        found[0] = (uint32_t)b, found[1] = left;
    }
    __syncthreads();
    bin = found[0], inside = found[1];
}

__global__ void __launch_bounds__(THREADS) clear(uint64_t* from, int64_t count) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
        from[i] = 0;
}

__global__ void __launch_bounds__(THREADS)
    probe(Source source, const cc_row* rows, const List* lists, Scratch scratch, float* hint) {
    __shared__ uint32_t bins[GUESS];
    const int64_t r = blockIdx.x;
    const cc_row row = rows[r];
    if (row.k == 0 && hint && threadIdx.x == 0) hint[r] = 0.0f;
    if (row.k == 0 || lists[r].capacity == 0) return;
    for (int b = threadIdx.x; b < GUESS; b += THREADS) bins[b] = 0;
    __syncthreads();
    const int64_t samples = least<int64_t>(row.numel, SAMPLES), cell = row.numel / samples;
    Seen unused;
    for (int64_t i = threadIdx.x; i < samples; i += THREADS) {
        const float y = source.one(row, i * cell + (uint32_t)i * 0x9E3779B9u % (uint32_t)cell, unused);
        atomicAdd(&bins[magnitude(y) >> 19], 1u);
    }
    __syncthreads();
    const float due = (float)row.k / (float)row.numel * (float)samples;  // and some more, to miss few rows
    uint32_t bin, inside;
    locate<GUESS>(bins, (uint32_t)(due + 3.0f * sqrtf(due)) + 2, bin, inside);
    if (threadIdx.x == 0) scratch.state[r].low = bin << 19;
}

__global__ void __launch_bounds__(THREADS) sweep(Source source, const cc_row* rows, const int32_t* tiles,
                                                 const List* lists, Scratch scratch, uint8_t* status) {
    __shared__ uint32_t of_warp[WARPS], base;
    const Program p(rows, tiles);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t first = p.tile * TILE + warp * 32 * EACH, left = p.row.numel - first - lane;
    State& state = scratch.state[p.r];
    const List list = lists[p.r];
    Seen seen;
    float y[EACH];
    source.many(y, p.row, first + lane, left, seen);
    if (source.in.x_type == F32) set_many<EACH, 32>(source.in.x, F32, p.row.x + first + lane, left, y);
    seen.report(status, p.row.index);
    if (list.capacity == 0) return;
    const uint32_t low = state.low;
    uint32_t count = 0;
#pragma unroll
    for (int r = 0; r < EACH; r++) count += __popc(__ballot_sync(ALL, r * 32 < left && magnitude(y[r]) >= low));
    if (lane == 0) of_warp[warp] = count;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t total = 0;
        for (int w = 0; w < WARPS; w++) {
            const uint32_t here = of_warp[w];
            of_warp[w] = total;
            total += here;
        }
        base = total ? atomicAdd(&state.found, total) : 0;
        scratch.begin[blockIdx.x] = base;
        scratch.length[blockIdx.x] = total;
    }
    __syncthreads();
    if (count == 0) return;
    uint32_t at = base + of_warp[warp];
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        const bool mine = r * 32 < left && magnitude(y[r]) >= low;
        const uint32_t all = __ballot_sync(ALL, mine), slot = at + __popc(all & below());
        if (mine && slot < list.capacity) {
            scratch.value[list.begin + slot] = y[r];
            scratch.place[list.begin + slot] = (uint16_t)(warp * 32 * EACH + r * 32 + lane);
        }
        at += __popc(all);
    }
}

template <int ROUND> __global__ void __launch_bounds__(THREADS)
    radix(Source source, const cc_row* rows, const int32_t* stretches, const List* lists, Scratch scratch,
          float* hint) {
    constexpr int WIDTH = ROUND == 0 ? 11 : 10, SHIFT = 20 - 10 * ROUND, N = 1 << WIDTH;
    __shared__ uint32_t mine[N], last;
    const Program p(rows, stretches);
    State& state = scratch.state[p.r];
    const List list = lists[p.r];
    const int64_t k = p.row.k, programs = ceil_div(p.row.numel, STRETCH);
    if (k == 0) return;
    uint32_t* bins = scratch.bins + (int64_t)p.r * BINS + (ROUND == 0 ? 0 : 1024 + 1024 * ROUND);
    const uint32_t prefix = ROUND ? state.prefix[ROUND ? ROUND - 1 : 0] : 0;
    const bool listed = is_listed(state, list, k);
    const int64_t items = listed ? state.found : p.row.numel,
                  part = listed ? ceil_div(items, programs) : (int64_t)STRETCH;
    const int64_t end = least(items, (p.tile + 1) * part);
    for (int b = threadIdx.x; b < N; b += THREADS) mine[b] = 0;
    __syncthreads();
    for (int64_t i = p.tile * part + threadIdx.x; i < end; i += 4 * THREADS) {  // four at once: loads in flight
        uint32_t size[4];
        Seen unused;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t at = i + j * THREADS;
            size[j] = 0;
            if (at < end) size[j] = magnitude(listed ? scratch.value[list.begin + at] : source.one(p.row, at, unused));
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j * THREADS < end && (ROUND == 0 || size[j] >> (SHIFT + WIDTH) == prefix))
                atomicAdd(&mine[size[j] >> SHIFT & (N - 1)], 1u);
    }
    __syncthreads();
    for (int b = threadIdx.x; b < N; b += THREADS)
        if (mine[b]) atomicAdd(&bins[b], mine[b]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&state.done[ROUND], 1u) == programs - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    uint32_t bin, inside;
    locate<N>(bins, ROUND ? state.rank[ROUND ? ROUND - 1 : 0] : (uint32_t)k, bin, inside);
    if (threadIdx.x) return;
    state.prefix[ROUND] = prefix << WIDTH | bin;
    state.rank[ROUND] = inside;
    if (ROUND == ROUNDS - 1 && hint) hint[p.r] = __uint_as_float(prefix << WIDTH | bin);
}

// What a tile publishes: 2 bits (1: of itself, 2: of itself and all before it in the row), how many lie above the k-th
// largest (31 bits), and how many equal it (31 bits).
struct Tally {
    uint32_t above, equal;
    __device__ __forceinline__ uint64_t word(uint64_t kind) const { return kind << 62 | (uint64_t)above << 31 | equal; }
    __device__ __forceinline__ uint32_t kept(uint32_t ties) const { return above + least(equal, ties); }
};
__device__ __forceinline__ Tally tally_of(uint64_t word) {
    return {(uint32_t)(word >> 31) & 0x7fffffff, (uint32_t)word & 0x7fffffff};
}
// Reads what a tile before this one publishes, at least of that kind: it has begun earlier, so it does.
__device__ __forceinline__ uint64_t wait_for(const uint64_t* seen, uint64_t kind) {
    uint64_t word;
    do word = *(const volatile uint64_t*)seen;
    while (word >> 62 < kind);
    return word;
}
// The sum over the tiles of the row before this one (look-back, Merrill and Garland 2016); one warp.
__device__ __forceinline__ Tally before(const uint64_t* seen, int64_t first, int64_t p) {
    Tally sum = {0, 0};
    for (int64_t at = p - 1 - (int)(threadIdx.x % 32);; at -= 32) {
        const uint64_t word = at >= first ? wait_for(seen + at, 1) : 2ull << 62;
        const uint32_t whole = __ballot_sync(ALL, word >> 62 == 2);
        Tally mine = tally_of(word);
        if (whole && (int)(threadIdx.x % 32) > __ffs((int)whole) - 1) mine = {0, 0};
        for (int other = 16; other; other /= 2) {
            mine.above += __shfl_xor_sync(ALL, mine.above, other);
            mine.equal += __shfl_xor_sync(ALL, mine.equal, other);
        }
        sum.above += mine.above;
        sum.equal += mine.equal;
        if (whole) return sum;
    }
}

__device__ __forceinline__ void put16(uint8_t* to, uint32_t bits) {  // at any address
    if ((uintptr_t)to % 2 == 0) {
        *(uint16_t*)to = (uint16_t)bits;
        return;
    }
    to[0] = (uint8_t)bits;
    to[1] = (uint8_t)(bits >> 8);
}

__global__ void __launch_bounds__(THREADS) compact(Source source, const cc_row* rows, const int32_t* tiles,
                                                   const List* lists, Scratch scratch, uint8_t* wire) {
    __shared__ Tally of_warp[WARPS], start;
    __shared__ uint32_t ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(scratch.ticket, 1u);  // in order of begin, so that waiting ends
    __syncthreads();
    const int64_t p = ticket;
    const int r = tiles[2 * p], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t tile = tiles[2 * p + 1], row_tiles = ceil_div(rows[r].numel, TILE);
    const cc_row row = rows[r];
    const State& state = scratch.state[r];
    const List list = lists[r];
    const bool narrow = source.in.x_type != F32, listed = !narrow && is_listed(state, list, row.k);
    const uint32_t limit = row.k ? state.prefix[ROUNDS - 1] : 0x7fffffffu, ties = row.k ? state.rank[ROUNDS - 1] : 0;
    const int64_t first = tile * TILE;
    const int base = warp * 32 * EACH + lane;
    const int items = listed ? (int)scratch.length[p] : (int)least<int64_t>(row.numel - first, TILE),
              left = items - base;

    float y[EACH];
    uint16_t place[EACH];
    if (listed) {
        const int64_t at = list.begin + (items ? scratch.begin[p] : 0) + base;
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            y[j] = j * 32 < left ? scratch.value[at + j * 32] : 0.0f;
            place[j] = j * 32 < left ? scratch.place[at + j * 32] : (uint16_t)0;
        }
    } else {
        Seen unused;
        source.many(y, row, first + base, left, unused);
#pragma unroll
        for (int j = 0; j < EACH; j++) place[j] = (uint16_t)(base + j * 32);
    }
    Tally mine = {0, 0};
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const uint32_t size = magnitude(y[j]);
        mine.above += __popc(__ballot_sync(ALL, j * 32 < left && size > limit));
        mine.equal += __popc(__ballot_sync(ALL, j * 32 < left && size == limit));
    }
    if (lane == 0) of_warp[warp] = mine;
    __syncthreads();
    if (warp == 0) {
        Tally all = {0, 0};
        for (int w = 0; w < WARPS; w++) all = {all.above + of_warp[w].above, all.equal + of_warp[w].equal};
        if (lane == 0 && tile) *(volatile uint64_t*)&scratch.seen[p] = all.word(1);
        const Tally sum = before(scratch.seen, p - tile, p);
        const Tally here = {sum.above + all.above, sum.equal + all.equal};
        if (lane == 0) {
            *(volatile uint64_t*)&scratch.seen[p] = here.word(2);
            start = sum;
            const bool end = tile == row_tiles - 1;
            if (tile % (65536 / TILE) == 65536 / TILE - 1 || end) {  // a block of 65,536 is complete: its count
                const int64_t opening = tile / (65536 / TILE) * (65536 / TILE);
                const uint32_t earlier =
                    opening ? tally_of(wait_for(scratch.seen + (p - tile) + opening - 1, 2)).kept(ties) : 0;
                put32(wire + row.wire + opening / (65536 / TILE) * 4, here.kept(ties) - earlier);
            }
            if (end && row.k % 2) put16(wire + row.wire + 4 * ceil_div(row.numel, 65536) + 2 * row.k, 0);
        }
    }
    __syncthreads();
    Tally run = start;
    for (int w = 0; w < warp; w++) run = {run.above + of_warp[w].above, run.equal + of_warp[w].equal};
    uint32_t slot = run.kept(ties), tied = run.equal;
    uint8_t* offsets = wire + row.wire + 4 * ceil_div(row.numel, 65536);
    uint8_t* values = offsets + pad4(2 * row.k);
    const uint32_t in_block = (uint32_t)(first % 65536);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const bool there = j * 32 < left;
        const uint32_t size = magnitude(y[j]);
        const uint32_t same = __ballot_sync(ALL, there && size == limit);
        const bool kept = there && (size > limit || (size == limit && tied + __popc(same & below()) < ties));
        const uint32_t all = __ballot_sync(ALL, kept);
        if (kept) {
            const int64_t at = slot + __popc(all & below());
            put16(offsets + 2 * at, in_block + place[j]);
            put32(values + 4 * at, __float_as_uint(y[j]));
            set(source.in.x, source.in.x_type, row.x + first + place[j], 0.0f);
        } else if (narrow && there) {
            set(source.in.x, source.in.x_type, row.x + first + place[j], y[j]);
        }
        slot += __popc(all);
        tied += __popc(same);
    }
}

}  // namespace

int64_t cc_cuda_topk_tile(void) { return TILE; }
int64_t cc_cuda_topk_stretch(void) { return STRETCH; }
int64_t cc_cuda_topk_scratch(int64_t nrows, int64_t programs, int64_t candidates) {
    const Scratch s(nullptr, nrows, programs, candidates);
    return (int64_t)(uintptr_t)(s.place + candidates);
}

int cc_cuda_topk_encode(CC_CUDA_ENCODE_PARAMS, float* hint, int64_t nrows, const int32_t* stretches,
                        int64_t stretch_programs, const int64_t* lists, uint8_t* memory, int64_t candidates,
                        void* stream) {
    const Source given{{x, add, x_type, add_type, decay, add_scale}};
    const Source swept = x_type == F32 ? Source{{x, nullptr, x_type, F32, 1.0f, 0.0f}} : given;
    const Scratch scratch(memory, nrows, programs, candidates);
    const List* room = (const List*)lists;
    const int64_t words = ((uint8_t*)scratch.begin - memory) / 8;
    int code = CC_LAUNCH(clear, least<int64_t>(ceil_div(words, THREADS), 1024), THREADS, stream, scratch.seen, words);
    if (!code) code = CC_LAUNCH(probe, nrows, THREADS, stream, given, rows, room, scratch, hint);
    if (!code) code = CC_LAUNCH(sweep, programs, THREADS, stream, given, rows, tiles, room, scratch, status);
    if (!code)
        code = CC_LAUNCH(radix<0>, stretch_programs, THREADS, stream, swept, rows, stretches, room, scratch, hint);
    if (!code)
        code = CC_LAUNCH(radix<1>, stretch_programs, THREADS, stream, swept, rows, stretches, room, scratch, hint);
    if (!code)
        code = CC_LAUNCH(radix<2>, stretch_programs, THREADS, stream, swept, rows, stretches, room, scratch, hint);
    if (!code) code = CC_LAUNCH(compact, programs, THREADS, stream, swept, rows, tiles, room, scratch, wire);
    return code;
}
