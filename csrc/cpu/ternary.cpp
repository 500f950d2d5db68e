// Ternary (TernGrad, Wen et al. 2017): q = floor(y/size + U), one of -1, 0, 1, times the block's size: the largest |y|,
// or clip root mean squares if that is less.
#include "block_encode.h"
#include "decode.h"
#include "dither.h"
#include "trits.h"

namespace {

struct Ternary {
    int64_t block;
    const float* gain;
    float clip;
    int64_t step, rank;
    int64_t section(int64_t numel) const { return 4 * ceil_div(numel, block) + pad4(trit_bytes(numel)); }
};

template <bool CLIP> struct Coder : Ternary {
    explicit Coder(const Ternary& t) : Ternary(t) {}

    struct Scale {
        float inverse, sent;
        bool ok;
    };
    struct Row {
        typedef typename Coder::Scale Scale;
        const int64_t block, offset, end;
        const float gain, clip;
        uint8_t *sizes, *out, *section_end;
        int64_t held = 0;  // digits that wait for a group to fill
        Dither dither;
        alignas(64) uint8_t digits[TRITS + TILE + 64];

        Row(const Coder& f, const cc_row& row, int64_t r, uint8_t* section)
            : block(f.block), offset(row.offset), end(row.offset + row.numel), gain(f.gain[r]), clip(f.clip),
              sizes(section), out(section + 4 * ceil_div(row.numel, f.block)),
              section_end(section + f.section(row.numel)), dither(row.key, f.step, f.rank) {}

        Scale nothing() const { return {0.0f, 0.0f, true}; }

        template <bool ADD> Scale measure(const Input<ADD>& in, int64_t n, I16& gradient) const {
            const Reader<ADD> reader(in);
            I16 largest = splat(0);
            F16 squares = splat(0.0f);
            for (int64_t i = 0; i < n; i += 16) {
                const F16 y = reader.at(i, (int)(n - i < 16 ? n - i : 16), gradient);
                largest = max(largest, magnitude_bits(y));
                if (CLIP) squares = squares + y * y;
            }
            float size = as_float(max_lanes(largest));
            if (!is_finite(size)) return {0.0f, 0.0f, false};
            if (CLIP) {
                const float sum = sum_lanes(squares), limit = clip * __builtin_sqrtf(sum / (float)n);
                if (sum >= 0x1p-100f && limit < size) size = limit;  // a sum that overflowed limits nothing
            }
            if (size < 0x1p-100f) return {0.0f, 0.0f, true};
            return {1.0f / size, size * gain, is_finite(size * gain)};
        }

        template <bool ADD> void code(const Input<ADD>& in, int64_t b, int64_t n, const Scale& s) {
            memcpy(sizes + 4 * b, &s.sent, 4);
            const Reader<ADD> reader(in);
            const F16 inverse = splat(s.inverse), sent = splat(s.sent);
            const I16 one = splat(1), minus_one = splat(-1);
            for (int64_t first = 0; first < n; first += TILE) {
                const int64_t count = n - first < TILE ? n - first : TILE;
                const float* u = dither.get(offset + b * block + first, count, end);
                to_bytes(digits + held, count, [&](int64_t i, int m) __attribute__((always_inline)) {
                    const F16 y = reader.at(first + i, m);
                    const I16 q = max(min(floor_int(y * inverse + load(u + i)), one), minus_one);
                    reader.leave(first + i, m, y - to_float(q) * sent);
                    return q + one;
                });
                held += count;
                int64_t packed = 0;
                for (; packed + TRITS <= held; packed += TRITS, out += 16) pack_trits(digits + packed, out);
                held -= packed;
                if (packed) memmove(digits, digits + packed, TRITS);
            }
        }
        void finish() {
            uint8_t last[16];
            const int64_t bytes = held < 16 ? held : 16;
            memset(digits + held, 0, (size_t)(TRITS - held));
            pack_trits(digits, last);
            memcpy(out, last, (size_t)bytes);
            memset(out + bytes, 0, (size_t)(section_end - out - bytes));
        }
    };
};

struct Decoder : Ternary {
    explicit Decoder(const Ternary& t) : Ternary(t) {}
    struct Scratch {
        alignas(64) uint16_t digits[(TILE / TRITS + 2) * TRITS];
    };
    struct Source {
        F16 value;  // of the digits 0, 1, 2 where a register can be a table, else of 2
        const uint16_t* p;
        inline F16 at(int64_t i) const {
            const I16 digit = load_u16(p + i);
#if CC_ISA == 2
            return {_mm512_permutexvar_ps(digit.v, value.v)};
#else
            return to_float(digit - splat(1)) * value;
#endif
        }
        inline F16 tail(int64_t i, int) const { return at(i); }
    };
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        float size;
        memcpy(&size, section + 4 * b, 4);
        const int64_t group = first / TRITS, vectors = (first - group * TRITS + n + 15) / 16;
        const uint8_t* in = section + 4 * blocks + 16 * group;
        uint16_t* to = scratch.digits;
        for (int64_t v = 0; v < vectors; v += 5, in += 16, to += TRITS) {
            const int64_t rest = first - group * TRITS + n - 16 * v;
            if (rest >= 16) {  // all sixteen bytes are there
                unpack_trits(in, to);
            } else {
                uint8_t last[16] = {};
                memcpy(last, in, (size_t)rest);
                unpack_trits(last, to);
            }
        }
#if CC_ISA == 2
        const F16 digit = {_mm512_setr_ps(-1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)};
        return {digit * splat(size), scratch.digits + (first - group * TRITS)};
#else
        return {splat(size), scratch.digits + (first - group * TRITS)};
#endif
    }
};

CC_INLINE bool sensible(float clip, int64_t block) {
    return (clip == 0.0f || (clip >= 1.0f && is_finite(clip))) && block > 0 && block % 16 == 0;
}

}  // namespace

CC_KERNEL(cc_ternary_encode,
          (CC_ENCODE_PARAMS, const float* gain, float clip, int64_t block, int64_t step, int64_t rank),
          (CC_ENCODE_ARGS, gain, clip, block, step, rank)) {
    if (!sensible(clip, block)) return CC_BAD_PARAMETER;
    const Ternary format{block, gain, clip, step, rank};
    return clip > 0.0f ? encode_all(Coder<true>(format), CC_ENCODE_ARGS)
                       : encode_all(Coder<false>(format), CC_ENCODE_ARGS);
}

CC_KERNEL(cc_ternary_decode, (CC_DECODE_PARAMS, int64_t block), (CC_DECODE_ARGS, block)) {
    if (!sensible(0.0f, block)) return CC_BAD_PARAMETER;
    return decode_all(Decoder(Ternary{block, nullptr, 0.0f, 0, 0}), CC_DECODE_ARGS);
}
