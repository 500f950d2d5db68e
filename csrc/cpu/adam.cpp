// Optimizers with flat fp32 moments: one call updates a list of parameters, each of a dtype of its own.
#include "half.h"
#include "rows.h"

namespace {

#if CC_ISA == 2
CC_INLINE F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
CC_INLINE F16 root(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
#else
CC_INLINE F16 operator/(F16 a, F16 b) {
    return map<F16>(CC_FN(vf x, vf y) { return x / y; }, a, b);
}
CC_INLINE F16 root(F16 a) {
#if CC_ISA == 1
    return map<F16>(CC_FN(vf x) { return _mm256_sqrt_ps(x); }, a);
#elif defined(CC_X86)
    return map<F16>(CC_FN(vf x) { return _mm_sqrt_ps(x); }, a);
#else
    float t[16];
    store(t, a);
    for (int j = 0; j < 16; j++) t[j] = __builtin_sqrtf(t[j]);
    return load(t);
#endif
}
#endif

// Past the caches, to a multiple of 64 bytes: what is only written need not be read first. flush() ends a run of them.
CC_INLINE void stream(float* p, F16 a) {
#if CC_ISA == 2
    _mm512_stream_ps(p, a.v);
#elif CC_ISA == 1
    _mm256_stream_ps(p, a.p0);
    _mm256_stream_ps(p + 8, a.p1);
#elif defined(CC_X86)
    _mm_stream_ps(p, a.p0);
    _mm_stream_ps(p + 4, a.p1);
    _mm_stream_ps(p + 8, a.p2);
    _mm_stream_ps(p + 12, a.p3);
#else
    store(p, a);
#endif
}
CC_INLINE void flush() {
#ifdef CC_X86
    _mm_sfence();
#endif
}

// Sixteen elements, or m < 16 of them, from element i of a tensor, and back.
CC_INLINE F16 get(const float* p, int64_t i, int m) { return m == 16 ? load(p + i) : load(p + i, m); }
CC_INLINE void put(float* p, int64_t i, int m, F16 a) { m == 16 ? store(p + i, a) : store(p + i, a, m); }

struct Float32 {
    CC_INLINE F16 at(int64_t p, int64_t i, int m) { return get((const float*)p, i, m); }
    CC_INLINE void set(int64_t p, int64_t i, int m, F16 a) { put((float*)p, i, m, a); }
};
template <class H> struct Float {
    CC_INLINE F16 at(int64_t p, int64_t i, int m) {
        const uint16_t* q = (const uint16_t*)p + i;
        if (m == 16) return H::unpack(load_u16(q));
        uint16_t t[16] = {};
        memcpy(t, q, 2 * (size_t)m);
        return H::unpack(load_u16(t));
    }
    CC_INLINE void set(int64_t p, int64_t i, int m, F16 a) {
        uint16_t* q = (uint16_t*)p + i;
        const I16 h = H::pack(a);
        if (m == 16) return store_u16(q, h);
        uint16_t t[16];
        store_u16(t, h);
        memcpy(q, t, 2 * (size_t)m);
    }
};
struct None {  // zeros
    CC_INLINE F16 at(int64_t, int64_t, int) { return splat(0.0f); }
};
enum { NONE = 3 };

// op.run<P, G>(piece) under the type of its gradient.
template <class P, class Op> CC_INLINE void by_grad(const Op& op, const cc_piece& r) {
    switch (r.types >> 2) {
        case 0: return op.template run<P, Float32>(r);
        case 1: return op.template run<P, Float<BFloat16>>(r);
        case 2: return op.template run<P, Float<Float16>>(r);
        default: return op.template run<P, None>(r);
    }
}
// op.with<P>(piece) under the type of its parameter, for each; Op::blind: a parameter need not be there.
template <class Op> CC_INLINE int64_t each(const Op& op, const cc_piece* pieces, int64_t count, int64_t numel) {
    for (int64_t r = 0; r < count; r++) {  // all of them before the first is touched
        const cc_piece& p = pieces[r];
        if (p.numel > MAX_NUMEL || !inside(p.start, p.numel, numel) || p.types < 0 || p.types > 4 * NONE + NONE ||
            (!Op::blind && (p.types & 3) == NONE))
            return CC_BAD_ROW(r);
    }
    for (int64_t r = 0; r < count; r++) switch (pieces[r].types & 3) {
            case 0: op.template with<Float32>(pieces[r]); break;
            case 1: op.template with<Float<BFloat16>>(pieces[r]); break;
            case 2: op.template with<Float<Float16>>(pieces[r]); break;
            default:
                if constexpr (Op::blind) op.template with<None>(pieces[r]);
        }
    return 0;
}

struct Adam {
    static constexpr bool blind = false;
    float *mean, *square;
    float beta1, rest1, beta2, rest2, scale, rate, correction, eps, decay, l2;

    template <class P> void with(const cc_piece& r) const { by_grad<P>(*this, r); }
    template <class P, class G> void run(const cc_piece& r) const {
        if (l2 == 0.0f && decay == 0.0f) go<P, G, false, false>(r);
        else if (l2 == 0.0f) go<P, G, false, true>(r);
        else if (decay == 0.0f) go<P, G, true, false>(r);
        else go<P, G, true, true>(r);
    }
    template <class P, class G, bool L2, bool DECAY> void go(const cc_piece& r) const {
        const F16 b1 = splat(beta1), r1 = splat(rest1), b2 = splat(beta2), r2 = splat(rest2), s = splat(scale),
                  step = splat(rate), c = splat(correction), e = splat(eps), d = splat(decay), l = splat(l2);
        float *ms = mean + r.start, *vs = square + r.start;
        for (int64_t i = 0; i < r.numel; i += 16) {
            const int n = (int)(r.numel - i < 16 ? r.numel - i : 16);
            const F16 p = P::at(r.param, i, n);
            F16 g = G::at(r.grad, i, n) * s;
            if (L2) g = g + p * l;
            const F16 m = get(ms, i, n) * b1 + g * r1, v = get(vs, i, n) * b2 + g * r2 * g;
            F16 u = m / (root(v) * c + e) * step;
            if (DECAY) u = u + p * d;
            put(ms, i, n, m);
            put(vs, i, n, v);
            P::set(r.param, i, n, p - u);
        }
    }
};

// Elements of what goes past the caches: the vector is larger than they are, and the piece worth a flush.
enum : int64_t { LARGE = (int64_t)1 << 21, LONG = 4096 };

struct Momentum {
    static constexpr bool blind = true;  // where l2 = 0
    const float* mean;
    float* out;
    float beta, rest, scale, l2;
    I16* worst;
    bool past;  // the caches

    template <class P> void with(const cc_piece& r) const { by_grad<P>(*this, r); }
    template <class P, class G> void run(const cc_piece& r) const {
        if (l2 == 0.0f) go<None, G, false>(r);
        else go<P, G, true>(r);
    }
    template <class P, class G, bool L2> void go(const cc_piece& r) const {
        const F16 b = splat(beta), a = splat(rest), s = splat(scale), l = splat(l2);
        const float* from = mean + r.start;
        float* to = out + r.start;
        I16 seen = splat(0);
        auto next = [&](int64_t i, int n) __attribute__((always_inline)) {
            F16 g = G::at(r.grad, i, n);
            seen = max(seen, magnitude_bits(g));
            g = g * s;
            if (L2) g = g + P::at(r.param, i, n) * l;
            return get(from, i, n) * b + g * a;
        };
        int64_t i = 0;
        if (past && r.numel >= LONG) {
            const int head = (int)(-((uintptr_t)to >> 2) & 15);  // to a multiple of 64 bytes
            if (head) put(to, 0, head, next(0, head));
            for (i = head; i + 16 <= r.numel; i += 16) stream(to + i, next(i, 16));
            flush();
        }
        for (; i < r.numel; i += 16) {
            const int n = (int)(r.numel - i < 16 ? r.numel - i : 16);
            put(to, i, n, next(i, n));
        }
        *worst = max(*worst, seen);
    }
};

struct Descend {
    static constexpr bool blind = false;
    const float *mean, *denominator;
    float rate, decay;

    template <class P> void with(const cc_piece& r) const { decay == 0.0f ? go<P, false>(r) : go<P, true>(r); }
    template <class P, bool DECAY> void go(const cc_piece& r) const {
        const F16 step = splat(rate), d = splat(decay);
        for (int64_t i = 0; i < r.numel; i += 16) {
            const int n = (int)(r.numel - i < 16 ? r.numel - i : 16);
            const F16 p = P::at(r.param, i, n);
            F16 u = get(mean + r.start, i, n) / get(denominator + r.start, i, n) * step;
            if (DECAY) u = u + p * d;
            P::set(r.param, i, n, p - u);
        }
    }
};

}  // namespace

CC_KERNEL(cc_adam,
          (const cc_piece* pieces, int64_t count, float* mean, float* square, int64_t numel, float beta1, float rest1,
           float beta2, float rest2, float scale, float rate, float correction, float eps, float decay, float l2),
          (pieces, count, mean, square, numel, beta1, rest1, beta2, rest2, scale, rate, correction, eps, decay, l2)) {
    return each(Adam{mean, square, beta1, rest1, beta2, rest2, scale, rate, correction, eps, decay, l2}, pieces, count,
                numel);
}
CC_KERNEL(cc_momentum,
          (const cc_piece* pieces, int64_t count, const float* mean, float* out, int64_t numel, float beta, float rest,
           float scale, float l2, uint8_t* status),
          (pieces, count, mean, out, numel, beta, rest, scale, l2, status)) {
    I16 worst = splat(0);
    const bool past = out != mean && numel >= LARGE && ((uintptr_t)out & 3) == 0;
    const int64_t code = each(Momentum{mean, out, beta, rest, scale, l2, &worst, past}, pieces, count, numel);
    if (max_lanes(worst) >= INFINITE) status[0] |= 1;
    return code;
}
CC_KERNEL(cc_descend,
          (const cc_piece* pieces, int64_t count, const float* mean, const float* denominator, int64_t numel,
           float rate, float decay),
          (pieces, count, mean, denominator, numel, rate, decay)) {
    return each(Descend{mean, denominator, rate, decay}, pieces, count, numel);
}
