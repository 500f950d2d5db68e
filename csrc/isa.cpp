// Which instruction set to use: the best the processor has, or what COMPCOMM_CPU says. Compiled once, for any
// processor.
#include <stdlib.h>
#include <string.h>

#include "include/compcomm.h"

#ifndef CC_BUILT  // bit l: this library has the kernels of set l (isas.cmake)
#define CC_BUILT 1
#endif

namespace {

// What the processor has, as bits. Every set holds the ones before it.
int supported() {
#ifdef CC_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("popcnt")) return 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 7;
    return 3;
#else
    return 1;
#endif
}

int highest(int sets) {  // -1: none
    int l = 2;
    while (l >= 0 && !(sets >> l & 1)) l--;
    return l;
}

int usable() { return supported() & (CC_BUILT); }

int initial() {
    const char* forced = getenv("COMPCOMM_CPU");
    const char* names[] = {"baseline", "avx2", "avx512"};
    for (int l = 0; forced && l < 3; l++)
        if (usable() >> l & 1 && !strcmp(forced, names[l])) return l;
    return highest(usable());  // an unknown or unavailable name: the Python loader reports it
}

int level = initial();

}  // namespace

#ifdef CC_ASK  // as a program: which set would be chosen here, had the library all of them (isas.cmake)
int main() { return highest(supported()); }
#else
extern "C" int cc_isa(void) { return level; }
extern "C" int cc_isa_best(void) { return highest(usable()); }
extern "C" int cc_isa_set(int wanted) {
    if (wanted < 0 || wanted > 2 || !(usable() >> wanted & 1)) return -1;
    level = wanted;
    return 0;
}
extern "C" int cc_abi_version(void) { return 1; }
#endif
