// compcomm's CUDA kernels: the plain C interface of compcomm.h for memory on a device, in a library of its own
// (libcompcomm_cuda). It brings CUDA's runtime along, so it loads where there is no driver; calls then say so.
//
// Functions launch on `stream` (a cudaStream_t; null: the default one) and return 0 or CUDA's error code. They allocate
// nothing and never wait for the device. They do not check rows: the host does that, once per table.
//
// `rows` is the table in device memory. `tiles` says which program treats what: pairs (row, tile of the row),
// `programs` of them, in order; a tile has so many elements as the function beside it says. What a tensor holds is said
// by a type: 0 fp32, 1 bfloat16, 2 float16.
#ifndef COMPCOMM_CUDA_H
#define COMPCOMM_CUDA_H
#include "compcomm.h"

#ifdef __cplusplus
extern "C" {
#endif

CC_API int cc_cuda_abi_version(void);
CC_API int cc_cuda_emulated(void);            // 1: compiled for the host, for tests; pointers are the host's
CC_API int cc_cuda_device_count(int* count);  // 0, or an error: no driver, no device
CC_API const char* cc_cuda_error(int code);   // what a code means

// The leading arguments of encoders; x_type and add_type say what x and add hold. add may be null.
#define CC_CUDA_ENCODE_PARAMS                                                                                    \
    void *x, int x_type, const void *add, int add_type, uint8_t *wire, const cc_row *rows, const int32_t *tiles, \
        int64_t programs, uint8_t *status, float decay, float add_scale
// The leading arguments of decoders: `messages` messages `stride` bytes apart.
#define CC_CUDA_DECODE_PARAMS                                                                         \
    const uint8_t *wires, int64_t messages, int64_t stride, const cc_row *rows, const int32_t *tiles, \
        int64_t programs, const uint8_t *skip, void *out, int out_type, float scale, int accumulate
// The leading arguments of what an owner does: y = x + add_scale * (scale * sum of the messages), the code of y to
// `wire`, and to x what that leaves. Without x: y = add_scale * (scale * sum). `from` says where a row lies in the
// messages, `rows` where in x and `wire`; both have the same rows.
#define CC_CUDA_REENCODE_PARAMS \
    void *x, int x_type, const uint8_t *wires, int64_t messages, int64_t stride, const cc_row *from, \
        const uint8_t *skip, uint8_t *wire, const cc_row *rows, const int32_t *tiles, int64_t programs, \
        uint8_t *status, float scale, float add_scale

CC_API int64_t cc_cuda_decode_tile(void);           // elements to a program of decoders
CC_API int64_t cc_cuda_encode_tile(int64_t block);  // elements to a program of encoders in blocks, and of recoders

CC_API int cc_cuda_sign_encode(CC_CUDA_ENCODE_PARAMS, int kind, int64_t block, void* stream);
CC_API int cc_cuda_sign_decode(CC_CUDA_DECODE_PARAMS, int64_t block, void* stream);
CC_API int cc_cuda_sign_reencode(CC_CUDA_REENCODE_PARAMS, int kind, int64_t block, void* stream);

CC_API int cc_cuda_qsgd_encode(CC_CUDA_ENCODE_PARAMS, const float* gain, int bits, int levels, int norm2,
                               int stochastic, int64_t block, int64_t step, int64_t rank, void* stream);
CC_API int cc_cuda_qsgd_decode(CC_CUDA_DECODE_PARAMS, int bits, int levels, int64_t block, void* stream);
CC_API int cc_cuda_qsgd_reencode(CC_CUDA_REENCODE_PARAMS, const float* gain, int bits, int levels, int norm2,
                               int stochastic, int64_t block, int64_t step, int64_t rank, void* stream);

// `stretches`: the same rows in tiles of cc_cuda_topk_stretch(). `lists`: per row where its list of candidates begins
// and how many it has room for (0: none); `candidates`, all of them. `memory`: cc_cuda_topk_scratch() bytes, aligned
// to 16.
CC_API int64_t cc_cuda_topk_tile(void);
CC_API int64_t cc_cuda_topk_stretch(void);
CC_API int64_t cc_cuda_topk_scratch(int64_t nrows, int64_t programs, int64_t candidates);
CC_API int cc_cuda_topk_encode(CC_CUDA_ENCODE_PARAMS, float* hint, int64_t nrows, const int32_t* stretches,
                               int64_t stretch_programs, const int64_t* lists, uint8_t* memory, int64_t candidates,
                               void* stream);

#ifdef __cplusplus
}
#endif
#endif
