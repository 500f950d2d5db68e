// QSGD in Elias codes: quantise a block to bytes (quantise.h), find the shortest of three forms, append it to the row's
// bit stream. One pass over memory.
#include "omega.h"
#include "quantise.h"
#include "scratch.h"

namespace {

struct Tables {  // words as bits | length << 16, by level + MAX_LEVEL or by gap
    uint32_t dense[2 * MAX_LEVEL + 1], sparse[2 * MAX_LEVEL + 1], gap[SHORT_GAP];
    uint64_t lengths[2 * MAX_LEVEL + 1];  // dense in the low half; sparse, with the shortest gap, in the high half
};
static Tables tables;
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static uint32_t packed(Word w) { return (uint32_t)w.bits | (uint32_t)w.length << 16; }
static void make_tables() {
    for (int q = -MAX_LEVEL; q <= MAX_LEVEL; q++) {
        const uint64_t size = (uint64_t)(q < 0 ? -q : q);
        const Word sign{q < 0, 1}, d = q ? join(omega(size + 1), sign) : omega(1);
        const Word s = q ? join(sign, omega(size)) : Word{0, 0};
        tables.dense[q + MAX_LEVEL] = packed(d);
        tables.sparse[q + MAX_LEVEL] = packed(s);
        tables.lengths[q + MAX_LEVEL] = (uint64_t)d.length | (uint64_t)(q ? s.length + 1 : 0) << 32;
    }
    for (int64_t g = 1; g < SHORT_GAP; g++) tables.gap[g] = packed(omega((uint64_t)g));
}

CC_INLINE Word unpacked(uint32_t w) { return {w & 0xffff, (int)(w >> 16)}; }
CC_INLINE Word gap_word(int64_t gap) { return gap < SHORT_GAP ? unpacked(tables.gap[gap]) : omega((uint64_t)gap); }

// Which of up to 64 codes differ from `zero`; reads 64.
CC_INLINE uint64_t nonzero(const uint8_t* codes, int64_t n, int zero) {
    uint64_t mask = 0;
#if CC_ISA == 2
    mask = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)zero));
#elif defined(CC_X86)
    for (int i = 0; i < 4; i++) {
        const __m128i same =
            _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i*)(codes + 16 * i)), _mm_set1_epi8((char)zero));
        mask |= (uint64_t)(~_mm_movemask_epi8(same) & 0xffff) << 16 * i;
    }
#else
    for (int i = 0; i < 64; i++) mask |= (uint64_t)(codes[i] != zero) << i;
#endif
    return n < 64 ? mask & ones((int)n) : mask;
}

struct Block {  // n codes q + levels, readable up to the next multiple of 64
    const uint8_t* codes;
    int64_t n;
    int bits, levels;

    // Calls f(place) for every nonzero level, in order.
    template <class F> inline __attribute__((always_inline)) void each(F f) const {
        for (int64_t i = 0; i < n; i += 64)
            for (uint64_t m = nonzero(codes + i, n - i, levels); m; m &= m - 1) f(i + __builtin_ctzll(m));
    }
    // Bits of the gaps beyond one each, and of the gap that leads to the end.
    int64_t gaps() const {
        int64_t last = -1, sum = 0;
        each([&](int64_t at) {
            sum += gap_word(at - last).length - 1;
            last = at;
        });
        return sum + gap_word(n - last).length;
    }
    Form shortest() const {
        const uint64_t* length = tables.lengths + MAX_LEVEL - levels;
        int64_t dense = 0, sparse = 0;
        for (int64_t first = 0; first < n; first += TILE) {
            const int64_t end = first + TILE < n ? first + TILE : n;
            uint64_t a = 0, b = 0;
            int64_t i = first;
            for (; i + 2 <= end; i += 2) a += length[codes[i]], b += length[codes[i + 1]];
            if (i < end) a += length[codes[i]];
            a += b;
            dense += (int64_t)(a & 0xffffffff), sparse += (int64_t)(a >> 32);
        }
        if (sparse == 0) return ZERO;
        const int64_t fixed = n * bits, best = dense < fixed ? dense : fixed;
        if (sparse < best && sparse + gaps() < best) return SPARSE;
        return dense < fixed ? DENSE : FIXED;
    }
    void put_dense(BitWriter& out) const {
        const uint32_t* word = tables.dense + MAX_LEVEL - levels;
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            const Word a = join(unpacked(word[codes[i]]), unpacked(word[codes[i + 1]]));
            const Word b = join(unpacked(word[codes[i + 2]]), unpacked(word[codes[i + 3]]));
            const Word all = join(a, b);
            out.put(all.bits, all.length);
        }
        for (; i < n; i++) {
            const Word w = unpacked(word[codes[i]]);
            out.put(w.bits, w.length);
        }
    }
    void put_sparse(BitWriter& out) const {
        const uint32_t* word = tables.sparse + MAX_LEVEL - levels;
        int64_t last = -1;
        each([&](int64_t at) {
            const Word gap = gap_word(at - last), level = unpacked(word[codes[at]]);
            last = at;
            if (__builtin_expect(gap.length + level.length <= 64, 1)) {
                const Word both = join(gap, level);
                out.put(both.bits, both.length);
            } else {
                out.put(gap.bits, gap.length);
                out.put(level.bits, level.length);
            }
        });
        const Word end = gap_word(n - last);
        out.put(end.bits, end.length);
    }
    void put_fixed(BitWriter& out) const {
        for (int64_t first = 0; first < n; first += TILE) {
            const int64_t count = n - first < TILE ? n - first : TILE;
            alignas(64) uint8_t stream[TILE + 8];
            pack_codes(bits, codes + first, count, stream);
            for (int64_t left = count * bits, i = 0; left > 0; left -= 64, i += 8) {
                uint64_t w;
                memcpy(&w, stream + i, 8);
                const int length = left < 64 ? (int)left : 64;
                out.put(length < 64 ? w & ones(length) : w, length);
            }
        }
    }
};

template <bool NORM2, bool STOCHASTIC>
int64_t encode(CC_ENCODE_PARAMS, const float* gain, const Setting& set, int64_t step, int64_t rank) {
    int64_t longest = 0;
    for (int64_t r = 0; r < nrows; r++) {
        if (!encode_row_fits(rows[r], x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !elias_fits(rows[r], set.bits, set.block, wire_bytes))
            return CC_BAD_ROW(r);
        const int64_t most = rows[r].numel < set.block ? rows[r].numel : set.block;
        if (most > longest) longest = most;
    }
    uint8_t* codes = (uint8_t*)scratch((size_t)longest + 64);
    if (!codes) return CC_NO_MEMORY;
    const Setting bytewise{8, set.levels, set.block};
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        const int64_t blocks = ceil_div(row.numel, set.block), end = row.offset + row.numel;
        uint8_t *section = wire + row.wire, *forms = section + elias_forms_at(blocks);
        memset(forms, 0, (size_t)(elias_stream_at(blocks) - elias_forms_at(blocks)));
        BitWriter out{section + elias_stream_at(blocks)};
        float* px = x + row.x;
        const float* pa = add && row.add >= 0 ? add + row.add : nullptr;
        I16 gradient = splat(0);
        Dither dither(row.key, step, rank);
        for (int64_t b = 0, i = 0; b < blocks; b++, i += set.block) {
            const int64_t n = row.numel - i < set.block ? row.numel - i : set.block;
            const float size =
                pa ? encode_block<true, NORM2, STOCHASTIC>(px + i, pa + i, n, decay, add_scale, gain[r], bytewise,
                                                           &dither, row.offset + i, end, codes, gradient, status)
                   : encode_block<false, NORM2, STOCHASTIC>(px + i, nullptr, n, decay, add_scale, gain[r], bytewise,
                                                            &dither, row.offset + i, end, codes, gradient, status);
            memcpy(section + 4 + 4 * b, &size, 4);
            memset(codes + n, 0, (size_t)(-n & 63));  // what packing reads beyond them
            const Block block{codes, n, set.bits, set.levels};
            const Form form = block.shortest();
            forms[b / 4] |= (uint8_t)(form << b % 4 * 2);
            if (form == FIXED) block.put_fixed(out);
            else if (form == DENSE) block.put_dense(out);
            else if (form == SPARSE) block.put_sparse(out);
        }
        const uint8_t* last = out.finish();
        const uint32_t used = (uint32_t)pad4(last - section);
        memcpy(section, &used, 4);
        const int64_t capacity = elias_capacity(row.numel, set.bits, set.block);
        memset(section + (last - section), 0, (size_t)(capacity - (last - section)));
        if (or_lanes(gradient) & 0x7fffffff) status[1 + row.index] |= 1;
    }
    return 0;
}

}  // namespace

CC_KERNEL(cc_elias_encode,
          (CC_ENCODE_PARAMS, const float* gain, int bits, int levels, int norm2, int stochastic, int64_t block,
           int64_t step, int64_t rank),
          (CC_ENCODE_ARGS, gain, bits, levels, norm2, stochastic, block, step, rank)) {
    if (!sensible(bits, levels, block)) return CC_BAD_PARAMETER;
    pthread_once(&tables_once, make_tables);
    const Setting set{bits, levels, block};
    if (norm2)
        return stochastic ? encode<true, true>(CC_ENCODE_ARGS, gain, set, step, rank)
                          : encode<true, false>(CC_ENCODE_ARGS, gain, set, step, rank);
    return stochastic ? encode<false, true>(CC_ENCODE_ARGS, gain, set, step, rank)
                      : encode<false, false>(CC_ENCODE_ARGS, gain, set, step, rank);
}
