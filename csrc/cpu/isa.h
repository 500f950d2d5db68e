// One source, three instruction sets. Every csrc/cpu/*.cpp is compiled once per set (CC_ISA = 0, 1, 2) with other
// flags; a library may have some of the sets only (isas.cmake).
//
//     CC_KERNEL(cc_name, (int a, float b), (a, b)) { ...body... }
//
// defines cc_name_isa0 / _isa1 / _isa2 and, in the least set alone, the exported cc_name that forwards to the one in
// use.
// Everything else in a kernel source belongs in an anonymous namespace, and no template of the standard library may be
// called that the compiler could leave out of line: the linker keeps one copy of such a symbol, and if that copy is the
// AVX-512 one, the baseline crashes.
#pragma once
#include "../include/compcomm.h"

#ifndef CC_ISA
#define CC_ISA 0
#endif
#define CC_CAT_(a, b) a##b
#define CC_CAT(a, b) CC_CAT_(a, b)
#define CC_SUFFIX CC_CAT(_isa, CC_ISA)
#define CC_INLINE static inline __attribute__((always_inline))

// CC_BUILT, the sets that this library has as bits, is given to the kernels of the least of them: they define what is
// exported, and all others only their own functions.
#if !defined(CC_BUILT)
#define CC_FORWARD(name, params, args)
#elif (CC_BUILT) == 1 << CC_ISA  // one set: cc_isa() is that one, or the library is not loaded
#define CC_FORWARD(name, params, args) \
    extern "C" int64_t name params { return CC_CAT(name, CC_SUFFIX) args; }
#else
#if (CC_BUILT) & 2
#define CC_TO_1(name, args) \
    case 1: return name##_isa1 args;
#else
#define CC_TO_1(name, args)
#endif
#if (CC_BUILT) & 4
#define CC_TO_2(name, args) \
    case 2: return name##_isa2 args;
#else
#define CC_TO_2(name, args)
#endif
#define CC_FORWARD(name, params, args)                         \
    extern "C" int64_t name##_isa1 params;                     \
    extern "C" int64_t name##_isa2 params;                     \
    extern "C" int64_t name params {                           \
        switch (cc_isa()) {                                    \
            CC_TO_2(name, args)                                \
            CC_TO_1(name, args)                                \
            default: return CC_CAT(name, CC_SUFFIX) args;      \
        }                                                      \
    }
#endif

#define CC_KERNEL(name, params, args)                  \
    extern "C" int64_t CC_CAT(name, CC_SUFFIX) params; \
    CC_FORWARD(name, params, args)                     \
    extern "C" int64_t CC_CAT(name, CC_SUFFIX) params
