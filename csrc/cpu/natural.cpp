// Natural compression: |y| rounded at random to a power of two. An fp32 number's bits, read as an integer, are linear
// between powers of two; so  t = bits(y*gain) + 128 u + 64  carries into the exponent with the right probability, and
// t without its mantissa is the number sent. Section: the exponent fields (a byte each), then the signs (a bit each).
#include "codes.h"
#include "decode.h"
#include "dither.h"

namespace {

enum : int32_t { SIGN = INT32_MIN, FIELDS = INT32_MIN | INFINITE, LARGEST = 0x7f000000 };  // LARGEST: 2^127

struct Natural {
    static constexpr int64_t block = 0;
    int64_t numel;  // of the row: where its signs begin
    typedef NoScratch Scratch;
    struct Source {
        const uint8_t *codes, *signs;
        CC_INLINE F16 value(I16 code, uint16_t m) {
#if CC_ISA == 2
            const __m512i size = _mm512_slli_epi32(code.v, 23);
            return {_mm512_castsi512_ps(_mm512_mask_or_epi32(size, m, size, _mm512_set1_epi32(SIGN)))};
#elif CC_ISA == 1
            const __m256i by = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), all = _mm256_set1_epi32(m);
            const __m256i lo = _mm256_sllv_epi32(all, by), hi = _mm256_sllv_epi32(_mm256_srli_epi32(all, 8), by);
            return floats(shl<23>(code) | (I16{(vi)lo, (vi)hi} & splat(SIGN)));  // bit l to the sign of lane l
#else
            static const int32_t lane[16] = {1,   2,   4,    8,    16,   32,   64,    128,
                                             256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
            const Mask set = lt(splat(0), splat((int32_t)m) & load_int(lane));
            return floats(shl<23>(code) | bits(select(set, floats(splat(SIGN)), splat(0.0f))));
#endif
        }
        inline F16 at(int64_t i) const {
            uint16_t m;
            memcpy(&m, signs + i / 8, 2);
            return value(load_u8(codes + i), m);
        }
        inline F16 tail(int64_t i, int n) const {
            const Bytes<2> b = read_tail<2>(signs + i / 8, (n + 7) / 8);
            return value(load_u8(read_tail<16>(codes + i, n).b), (uint16_t)(b.b[0] | b.b[1] << 8));
        }
    };
    static int64_t bytes(int64_t numel) { return numel + ceil_div(numel, 8); }
    int64_t section(int64_t count) const { return pad4(bytes(count)); }
    Source source(const uint8_t* section, int64_t, int64_t, int64_t first, int64_t, NoScratch&) const {
        return {section + first, section + numel + first / 8};
    }
};

struct Factors {
    F16 decay, add_scale, gain;
};

// Sixteen elements (m of them real): t, the value that it stands for, and what is left.
template <bool ADD> CC_INLINE I16 round_up(const float* x, const float* add, const int32_t* u, int m, const Factors& f,
                                           I16& gradient, I16& worst, F16& left) {
    F16 a = m == 16 ? load(x) : load(x, m), b = a;
    if (ADD) b = m == 16 ? load(add) : load(add, m);
    gradient = gradient | bits(b);
    const F16 y = combine<ADD>(a, b, f.decay, f.add_scale), z = y * f.gain;
    worst = max(worst, max(magnitude_bits(y), magnitude_bits(z)));
    const I16 t = bits(z) + load_int(u);
    left = y - floats(t & splat(FIELDS));
    return t;
}

// The same after write_y: x is y. What would become infinite is sent as 2^127 and reported.
CC_INLINE I16 round_clamped(const float* x, const int32_t* u, int m, const Factors& f, I16& worst, F16& left) {
    const F16 y = m == 16 ? load(x) : load(x, m);
    I16 t = bits(y * f.gain) + load_int(u);
    const I16 size = t & splat(0x7fffffff), top = (t & splat(SIGN)) | splat(LARGEST);
    worst = max(worst, size);
    t = bits(select(lt(size, splat(INFINITE)), floats(t), floats(top)));
    left = y - floats(t & splat(FIELDS));
    return t;
}

CC_INLINE uint16_t negative(I16 t) { return (uint16_t)to_bits(lt(t, splat(0))); }
CC_INLINE I16 exponent(I16 t) { return shr<23>(t) & splat(255); }

// Up to 64 elements, first as if all were below 2^127.
template <bool ADD> CC_INLINE void encode_chunk(float* x, const float* add, const int32_t* u, int n, const Factors& f,
                                                float decay, float add_scale, uint8_t* codes, uint8_t* signs,
                                                I16& gradient, uint8_t* status) {
    I16 t[4] = {splat(0), splat(0), splat(0), splat(0)}, worst = splat(0);
    F16 left[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
        if (16 * v < n) {
            const int m = n - 16 * v < 16 ? n - 16 * v : 16;
            t[v] = round_up<ADD>(x + 16 * v, ADD ? add + 16 * v : nullptr, u + 16 * v, m, f, gradient, worst, left[v]);
        }
    if (__builtin_expect(to_bits(lt(splat(LARGEST - 1), worst)) != 0, 0)) {
        Seen seen;
        write_y<ADD>(x, add, n, decay, add_scale, seen);
        for (int v = 0; 16 * v < n; v++)
            t[v] = round_clamped(x + 16 * v, u + 16 * v, n - 16 * v < 16 ? n - 16 * v : 16, f, seen.worst, left[v]);
        if (max_lanes(seen.worst) >= INFINITE) status[0] |= 1;
    }
    if (n == 64) {
        const I16 c[4] = {exponent(t[0]), exponent(t[1]), exponent(t[2]), exponent(t[3])};
        store_u8x64(codes, c);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const uint16_t m = negative(t[v]);
            memcpy(signs + 2 * v, &m, 2);
            store(x + 16 * v, left[v]);
        }
        return;
    }
    uint8_t bytes[64];
    const I16 c[4] = {exponent(t[0]), exponent(t[1]), exponent(t[2]), exponent(t[3])};
    store_u8x64(bytes, c);
    memcpy(codes, bytes, (size_t)n);
    for (int v = 0; 16 * v < n; v++) {
        const int m = n - 16 * v < 16 ? n - 16 * v : 16;
        const uint16_t mask = (uint16_t)(negative(t[v]) & ((1u << m) - 1));
        memcpy(signs + 2 * v, &mask, (size_t)(m + 7) / 8);
        store(x + 16 * v, left[v], m);
    }
}

template <bool ADD> static void encode_row(float* x, const float* add, uint8_t* out, const cc_row& row, float decay,
                                           float add_scale, float gain, int64_t step, int64_t rank, uint8_t* status) {
    const Factors f{splat(decay), splat(add_scale), splat(gain)};
    const int64_t n = row.numel, end = row.offset + n, used = Natural::bytes(n);
    uint8_t* signs = out + n;
    I16 gradient = splat(0);
    DitherBits dither(row.key, step, rank);
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t count = n - first < TILE ? n - first : TILE;
        const int32_t* u = dither.get(row.offset + first, count, end);
        float* px = x + first;
        const float* pa = ADD ? add + first : nullptr;
        int64_t i = 0;
        for (; i + 64 <= count; i += 64)
            encode_chunk<ADD>(px + i, ADD ? pa + i : nullptr, u + i, 64, f, decay, add_scale, out + first + i,
                              signs + (first + i) / 8, gradient, status);
        if (i < count)
            encode_chunk<ADD>(px + i, ADD ? pa + i : nullptr, u + i, (int)(count - i), f, decay, add_scale,
                              out + first + i, signs + (first + i) / 8, gradient, status);
    }
    memset(out + used, 0, (size_t)(pad4(used) - used));
    if (or_lanes(gradient) & 0x7fffffff) status[1 + row.index] |= 1;
}

// The shared decoder, a row at a time: where the signs begin depends on the row's length.
static int64_t decode_one(const Natural& format, CC_DECODE_PARAMS) { return decode_all(format, CC_DECODE_ARGS); }

}  // namespace

CC_KERNEL(cc_natural_encode, (CC_ENCODE_PARAMS, const float* gain, int64_t step, int64_t rank),
          (CC_ENCODE_ARGS, gain, step, rank)) {
    for (int64_t r = 0; r < nrows; r++) {
        const cc_row row = rows[r];
        if (!encode_row_fits(row, x_numel, add ? add_numel : 2 * MAX_NUMEL, wire_bytes, status_numel, 0, true) ||
            !inside(row.wire, pad4(Natural::bytes(row.numel)), wire_bytes))
            return CC_BAD_ROW(r);
        uint8_t* out = wire + row.wire;
        if (add && row.add >= 0)
            encode_row<true>(x + row.x, add + row.add, out, row, decay, add_scale, gain[r], step, rank, status);
        else encode_row<false>(x + row.x, nullptr, out, row, decay, add_scale, gain[r], step, rank, status);
    }
    return 0;
}

CC_KERNEL(cc_natural_decode, (CC_DECODE_PARAMS), (CC_DECODE_ARGS)) {
    for (int64_t r = 0; r < nrows; r++)
        if (decode_one(Natural{rows[r].numel}, wires, messages, stride, wire_bytes, rows + r, 1, skip, skip_numel, out,
                       out_numel, scale, accumulate))
            return CC_BAD_ROW(r);
    return 0;
}
