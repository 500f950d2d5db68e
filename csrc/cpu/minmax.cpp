// MinMax: 2^bits equal levels from the block's least element to its greatest, both exact.
//   unit = (high - low) / top;  level = rint((y - low) * top/(high - low)) or floor(that + U), U kept off 0 and 1 by eps;
//   value = low + unit*level, and high itself for the top level.
#include "block_encode.h"
#include "decode.h"
#include "dither.h"

namespace {

struct Setting {
    int bits;
    int64_t block;
    const float* gain;
    int64_t step, rank;
    int top() const { return (1 << bits) - 1; }
    int64_t section(int64_t numel) const { return 8 * ceil_div(numel, block) + pad4(ceil_div(numel * bits, 8)); }
};

alignas(64) static const int32_t LANE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
CC_INLINE I16 lanes() { return bits(load((const float*)(const void*)LANE)); }

// Floats as integers of the same order: negative ones have all bits but the sign turned over. -0 comes before 0.
CC_INLINE I16 ordered(F16 y) {
#if CC_ISA == 2
    const __m512i b = _mm512_castps_si512(y.v);
    return {_mm512_xor_si512(b, _mm512_srli_epi32(_mm512_srai_epi32(b, 31), 1))};
#else
    return map<I16>(CC_FN(vi b) { return b ^ (vi)((vu)(b >> 31) >> 1); }, bits(y));
#endif
}
CC_INLINE float unordered(int32_t key) { return as_float(key < 0 ? key ^ 0x7fffffff : key) + 0.0f; }  // never -0

// What a level stands for. Up to sixteen levels are a table where a register can be one.
template <bool TABLE> struct Values {
    F16 low, high, unit;
    I16 below;
    Values() = default;
    Values(float l, float h, int top)
        : low(splat(l)), high(splat(h)), unit(splat((h - l) / (float)top)), below(splat(top - 1)) {}
    inline __attribute__((always_inline)) F16 of(I16 q) const {
        return select(lt(below, q), high, low + to_float(q) * unit);
    }
};
#if CC_ISA == 2
template <> struct Values<true> {
    F16 table;
    Values() = default;
    Values(float l, float h, int top) : table(Values<false>(l, h, top).of(lanes())) {}
    inline __attribute__((always_inline)) F16 of(I16 q) const {  // reads only the low four bits of a lane
        return {_mm512_permutexvar_ps(q.v, table.v)};
    }
};
#endif

struct Scale {
    float low, high;         // of y
    float sent_low, sent_high;  // on the wire: times gain
    float inverse, eps;
    bool ok;
};

template <bool TABLE, bool STOCHASTIC> struct Coder {
    struct Row {
        typedef ::Scale Scale;
        const int bits, top;
        const int64_t block, offset, end;
        const float gain;
        uint8_t *ends, *codes, *pad, *section_end;
        Dither dither;

        Row(const Coder& f, const cc_row& row, int64_t r, uint8_t* section)
            : bits(f.set.bits), top(f.set.top()), block(f.set.block), offset(row.offset), end(row.offset + row.numel),
              gain(f.set.gain[r]), ends(section), codes(section + 8 * ceil_div(row.numel, block)),
              pad(codes + ceil_div(row.numel * bits, 8)), section_end(section + f.set.section(row.numel)),
              dither(row.key, f.set.step, f.set.rank) {}

        Scale nothing() const { return {0, 0, 0, 0, 0, 0, true}; }

        template <bool ADD> Scale measure(const Input<ADD>& in, int64_t n, I16& gradient) const {
            const Reader<ADD> y(in);
            I16 low = splat(INT32_MAX), high = splat(INT32_MIN);
            int64_t i = 0;
            for (; i + 16 <= n; i += 16) {
                const I16 key = ordered(y.at(i, 16, gradient));
                low = min(low, key), high = max(high, key);
            }
            if (i < n) {  // what lies beyond the end must not count
                const I16 key = ordered(y.at(i, (int)(n - i), gradient));
                const Mask in_block = lt(lanes(), splat((int32_t)(n - i)));
                low = min(low, ::bits(select(in_block, floats(key), floats(low))));
                high = max(high, ::bits(select(in_block, floats(key), floats(high))));
            }
            return scale(~max_lanes(low ^ splat(-1)), max_lanes(high));
        }

        Scale scale(int32_t low_key, int32_t high_key) const {
            const float low = unordered(low_key), high = unordered(high_key), range = high - low;
            Scale s = {low, high, low * gain, high * gain, 0, 0, false};
            s.ok = is_finite(low) && is_finite(high) && is_finite(range) && is_finite(s.sent_high - s.sent_low);
            if (range < 0x1p-100f) {
                s.sent_high = s.sent_low;
                return s;
            }
            s.inverse = (float)top / range;
            if (range * s.inverse < (float)top) s.inverse = as_float(as_bits(s.inverse) + 1);
            const float reach = -low > high ? -low : high;
            s.eps = reach * s.inverse * 0x1p-23f + (float)top * 0x1p-21f;
            if (s.eps > 0.5f) s.eps = 0.5f;
            return s;
        }

        template <bool ADD> void code(const Input<ADD>& in, int64_t b, int64_t n, const Scale& s) {
            memcpy(ends + 8 * b, &s.sent_low, 4);
            memcpy(ends + 8 * b + 4, &s.sent_high, 4);
            const Reader<ADD> reader(in);
            const Values<TABLE> values(s.sent_low, s.sent_high, top);
            const F16 low = splat(s.low), inverse = splat(s.inverse);
            const I16 last = splat(top), least = splat(as_bits(s.eps)), most = splat(as_bits(1.0f - s.eps));
            uint8_t* out = codes + b * block * bits / 8;
            alignas(64) uint8_t levels[TILE + 64];
            for (int64_t first = 0; first < n; first += TILE) {
                const int64_t count = n - first < TILE ? n - first : TILE;
                const float* u = STOCHASTIC ? dither.get(offset + b * block + first, count, end) : nullptr;
                to_bytes(levels, count, [&](int64_t i, int m) __attribute__((always_inline)) {
                    const F16 y = reader.at(first + i, m), t = (y - low) * inverse;
                    I16 q;
                    if (STOCHASTIC) q = floor_int(t + floats(max(least, min(most, ::bits(load(u + i))))));
                    else q = round_int(t);
                    q = min(q, last);
                    reader.leave(first + i, m, y - values.of(q));
                    return q;
                });
                if (bits == 1) pack_ones(levels, count, out + first / 8);
                else pack_codes(bits, levels, count, out + first * bits / 8);
            }
        }
        static void pack_ones(const uint8_t* levels, int64_t n, uint8_t* out) {
#if defined(CC_X86)
            for (int64_t i = 0; i < n; i += 16) {  // the levels have zeros up to the next multiple of 64
                const __m128i v = _mm_slli_epi16(_mm_load_si128((const __m128i*)(levels + i)), 7);
                const uint16_t mask = (uint16_t)_mm_movemask_epi8(v);
                memcpy(out + i / 8, &mask, n - i >= 9 ? 2 : 1);
            }
#else
            pack_codes<1>(levels, n, out);
#endif
        }
        void finish() const { memset(pad, 0, (size_t)(section_end - pad)); }
    };

    Setting set;
    int64_t block;
    explicit Coder(const Setting& s) : set(s), block(s.block) {}
    int64_t section(int64_t numel) const { return set.section(numel); }
};

struct ByteLevels {  // levels as bytes: in the wire itself (8 bits), or unpacked into the scratch tile
    const uint8_t* p;
    inline I16 at(int64_t i) const { return load_u8(p + i); }
    inline I16 tail(int64_t i, int n) const { return load_u8(read_tail<16>(p + i, n).b); }
};
struct NibbleLevels {
    const uint8_t* p;
    static inline I16 read(const uint8_t* p) {
#if CC_ISA == 2
        const __m512i v = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
        return {_mm512_or_si512(v, _mm512_slli_epi64(v, 28))};  // the table reads only the low four bits
#else
        return load_nibbles(p);
#endif
    }
    inline I16 at(int64_t i) const { return read(p + i / 2); }
    inline I16 tail(int64_t i, int n) const { return read(read_tail<8>(p + i / 2, (n + 1) / 2).b); }
};
#if CC_ISA > 0
struct StreamLevels {  // levels of any width, from a copy of the tile that may be read past its end
    StreamReader reader;
    const uint8_t* p;
    inline I16 at(int64_t i) const { return reader.read(p + i / 8 * reader.width); }
    inline I16 tail(int64_t i, int) const { return at(i); }
};
#endif

template <class L, bool TABLE> struct Levels {
    Values<TABLE> values;
    L levels;
    inline F16 at(int64_t i) const { return values.of(levels.at(i)); }
    inline F16 tail(int64_t i, int n) const { return values.of(levels.tail(i, n)); }
};
template <bool TABLE> CC_INLINE Values<TABLE> values_of(const uint8_t* section, int64_t b, int top) {
    float ends[2];
    memcpy(ends, section + 8 * b, 8);
    return Values<TABLE>(ends[0], ends[1], top);
}

struct Scratched {
    uint8_t codes[TILE + 16];
};
struct Bytewise : Setting {
    typedef Scratched Scratch;
    typedef Levels<ByteLevels, false> Source;
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        const uint8_t* p = section + 8 * blocks + first * bits / 8;
        if (bits == 1) unpack_codes<1>(p, n, scratch.codes), p = scratch.codes;
        else if (bits != 8) unpack_codes(bits, p, n, scratch.codes), p = scratch.codes;
        return {values_of<false>(section, b, top()), {p}};
    }
};
struct Nibblewise : Setting {
    typedef NoScratch Scratch;
    typedef Levels<NibbleLevels, CC_ISA == 2> Source;
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t, NoScratch&) const {
        return {values_of<CC_ISA == 2>(section, b, 15), {section + 8 * blocks + first / 2}};
    }
};
#if CC_ISA > 0
template <bool TABLE> struct Streamwise : Setting {
    StreamReader reader;
    explicit Streamwise(const Setting& s) : Setting(s), reader(s.bits) {}
    typedef Scratched Scratch;
    typedef Levels<StreamLevels, TABLE> Source;
    Source source(const uint8_t* section, int64_t blocks, int64_t b, int64_t first, int64_t n, Scratch& scratch) const {
        memcpy(scratch.codes, section + 8 * blocks + first * bits / 8, (size_t)ceil_div(n * bits, 8));
        return {values_of<TABLE>(section, b, top()), {reader, scratch.codes}};
    }
};
#endif

CC_INLINE bool sensible(int bits, int64_t block) { return bits >= 1 && bits <= 8 && block > 0 && block % 16 == 0; }

}  // namespace

CC_KERNEL(cc_minmax_encode,
          (CC_ENCODE_PARAMS, const float* gain, int bits, int stochastic, int64_t block, int64_t step, int64_t rank),
          (CC_ENCODE_ARGS, gain, bits, stochastic, block, step, rank)) {
    if (!sensible(bits, block)) return CC_BAD_PARAMETER;
    const Setting set{bits, block, gain, step, rank};
#if CC_ISA == 2
    if (bits <= 4)
        return stochastic ? encode_all(Coder<true, true>(set), CC_ENCODE_ARGS)
                          : encode_all(Coder<true, false>(set), CC_ENCODE_ARGS);
#endif
    return stochastic ? encode_all(Coder<false, true>(set), CC_ENCODE_ARGS)
                      : encode_all(Coder<false, false>(set), CC_ENCODE_ARGS);
}

CC_KERNEL(cc_minmax_decode, (CC_DECODE_PARAMS, int bits, int64_t block), (CC_DECODE_ARGS, bits, block)) {
    if (!sensible(bits, block)) return CC_BAD_PARAMETER;
    const Setting set{bits, block, nullptr, 0, 0};
    if (bits == 4) return decode_all(Nibblewise{set}, CC_DECODE_ARGS);
#if CC_ISA == 2
    if (bits < 4) return decode_all(Streamwise<true>(set), CC_DECODE_ARGS);
#endif
#if CC_ISA > 0
    if (bits != 8) return decode_all(Streamwise<false>(set), CC_DECODE_ARGS);
#endif
    return decode_all(Bytewise{set}, CC_DECODE_ARGS);
}
