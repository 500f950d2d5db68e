// Which instruction set to use: the best the processor has, or what COMPCOMM_CPU says. Compiled once, for any
// processor.
#include <stdlib.h>
#include <string.h>

#include "include/compcomm.h"

namespace {

int best() {
#ifdef CC_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt")) return 1;
#endif
    return 0;
}

int initial() {
    const char* forced = getenv("COMPCOMM_CPU");
    const int top = best();
    const char* names[] = {"baseline", "avx2", "avx512"};
    for (int i = 0; forced && i <= top; i++)
        if (!strcmp(forced, names[i])) return i;
    return top;  // an unknown or unavailable name: the Python loader reports it
}

int level = initial();

}  // namespace

extern "C" int cc_isa(void) { return level; }
extern "C" int cc_isa_best(void) { return best(); }
extern "C" int cc_isa_set(int wanted) {
    if (wanted < 0 || wanted > best()) return -1;
    level = wanted;
    return 0;
}
extern "C" int cc_abi_version(void) { return 1; }
