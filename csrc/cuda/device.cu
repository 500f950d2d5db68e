// What the host asks before it launches anything.
#include "blocks.h"

int cc_cuda_abi_version(void) { return 1; }
int64_t cc_cuda_decode_tile(void) { return DECODE_TILE; }
int64_t cc_cuda_encode_tile(int64_t block) { return encode_tile(block); }
#ifdef CC_EMULATE
int cc_cuda_emulated(void) { return 1; }
int cc_cuda_device_count(int* count) { return *count = 1, 0; }
const char* cc_cuda_error(int) { return "emulated kernels give no errors"; }
#else
int cc_cuda_emulated(void) { return 0; }
int cc_cuda_device_count(int* count) {
    *count = 0;
    return (int)cudaGetDeviceCount(count);
}
const char* cc_cuda_error(int code) { return cudaGetErrorString((cudaError_t)code); }
#endif
