// compcomm's native kernels: a plain C interface (pointers and sizes), so that one binary serves every Python and
// torch.
//
// Every kernel is *segmented*: one call treats all rows of a table, one row per parameter piece of a gradient bucket.
// Encoders read  y = decay*x + add_scale*add , write y's payload to `wire` and leave in x what was not sent.
// Decoders read W messages that share one table, and write or add  scale * (v_0 + v_1 + ...)  to `out`.
//
// Every function returns 0, or a code and then has written nothing outside the rows that precede the faulty one:
//   -1 - r   row r of the table does not fit its tensors (negative size, outside x/add/out/wire, bad status index)
//   -(1<<40) a parameter that is not a row is out of range (bits, levels, block)
//   -(1<<41) no memory for the lists of candidates (cc_topk_encode)
//   > 0      a payload is corrupt: 1 + message*nrows + row   (sparse decoders only)
#ifndef COMPCOMM_H
#define COMPCOMM_H
#include <stdint.h>

#if defined(__GNUC__)
#define CC_API __attribute__((visibility("default")))
#else
#define CC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// One row of the table: int64[8]. Indices count elements, `wire` counts bytes.
typedef struct cc_row {
    int64_t x;       // first element in x (encode) or out (decode); -1: absent
    int64_t add;     // first element in add; -1: none
    int64_t numel;   // elements of the row, may be 0
    int64_t wire;    // first byte of the row's section in a message, a multiple of 4
    int64_t offset;  // index inside the parameter of the row's first element: random numbers depend on it
    int64_t key;     // Philox key: word 0 = low 32 bits, word 1 = high 32 bits
    int64_t k;       // kept elements (sparse formats)
    int64_t index;   // entry of the row in status[1 + index] and skip[index]
} cc_row;

// One row of the tables of what works between two tensors without a wire: int64[4], all in elements.
typedef struct cc_span {
    int64_t to;     // first element written
    int64_t from;   // first element read
    int64_t numel;  // elements of the row, may be 0
    int64_t index;  // entry of the row in status[1 + index]
} cc_span;

#define CC_BAD_ROW(r) (-1 - (int64_t)(r))
#define CC_BAD_PARAMETER (-((int64_t)1 << 40))
#define CC_NO_MEMORY (-((int64_t)1 << 41))

// The leading arguments of every encoder. Sizes are elements (x, add, status) or bytes (wire).
// status[0] |= 1 when a non-finite number was met; status[1+index] |= 1 when the row's gradient has a nonzero element.
#define CC_ENCODE_PARAMS                                                                               \
    float *x, int64_t x_numel, const float *add, int64_t add_numel, uint8_t *wire, int64_t wire_bytes, \
        const cc_row *rows, int64_t nrows, uint8_t *status, int64_t status_numel, float decay, float add_scale
#define CC_ENCODE_ARGS x, x_numel, add, add_numel, wire, wire_bytes, rows, nrows, status, status_numel, decay, add_scale

// The leading arguments of every decoder: `messages` messages of wire_bytes bytes, `stride` bytes apart.
#define CC_DECODE_PARAMS                                                                                           \
    const uint8_t *wires, int64_t messages, int64_t stride, int64_t wire_bytes, const cc_row *rows, int64_t nrows, \
        const uint8_t *skip, int64_t skip_numel, float *out, int64_t out_numel, float scale, int accumulate
#define CC_DECODE_ARGS \
    wires, messages, stride, wire_bytes, rows, nrows, skip, skip_numel, out, out_numel, scale, accumulate

// The instruction set in use: 0 baseline, 1 AVX2, 2 AVX-512. The best one at load time; COMPCOMM_CPU forces one. -1:
// this library was built for other processors, and no kernel in it may be called.
CC_API int cc_isa(void);
CC_API int cc_isa_best(void);
CC_API int cc_isa_set(int level);  // 0, or -1 when this processor or this library does not have it
CC_API int cc_abi_version(void);

// Philox4x32-10: out[4*i .. 4*i+3] for the counters (c0 + i, c1, c2, c3), i < n.
CC_API int64_t cc_philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t key, int64_t n, uint32_t* out);

// Memory of feedback schemes: to <- alpha*to + beta[row]*from, where what is not finite in `from` counts as zero and is
// reported in status[0]; whether a row of `from` has an element that is not zero, in status[1 + index]; and
// x <- x + scale*(eta*error - estimate), where what is not finite in x counts as zero and is reported.
CC_API int64_t cc_axpby(float* to, int64_t to_numel, const float* from, int64_t from_numel, const cc_span* rows,
                        int64_t nrows, const float* beta, uint8_t* status, int64_t status_numel, float alpha);
// Matrices turned on their way between two buffers: to[b][j][i] = from[b][i][j] for b < count, i < rows, j < columns.
typedef struct cc_turned {
    int64_t to, from, count, rows, columns;
} cc_turned;
CC_API int64_t cc_turn(float* to, int64_t to_numel, const float* from, int64_t from_numel, const cc_turned* lines,
                       int64_t nlines);
// Rows of zeros: a line of the table is a piece of a parameter whose rows have k elements, `offset` of the first row's
// lying before it; bit j of the words at byte `wire` of `bits` says that row j is zero in x and add (x, add: -1 or null:
// absent). And zeros written to the rows of `to` whose bit is set.
CC_API int64_t cc_zero_rows_mark(const float* x, int64_t x_numel, const float* add, int64_t add_numel, uint8_t* bits,
                                 int64_t nbytes, const cc_row* rows, int64_t nrows);
CC_API int64_t cc_zero_rows_clear(float* to, int64_t to_numel, const uint8_t* bits, int64_t nbytes, const cc_row* rows,
                                  int64_t nrows);
// out[row] = the L2 norm of a row, what is not finite counting as zero.
CC_API int64_t cc_norms(const float* from, int64_t from_numel, const cc_span* rows, int64_t nrows, double* out,
                        int64_t out_numel);
CC_API int64_t cc_add_correction(float* x, int64_t x_numel, const float* error, const float* estimate, int64_t numel,
                        const cc_span* rows, int64_t nrows, uint8_t* status, int64_t status_numel, float eta,
                        float scale);
CC_API int64_t cc_nonzero_segments(const float* from, int64_t from_numel, const cc_span* rows, int64_t nrows, uint8_t* status,
                        int64_t status_numel);

// Dense: fp32, as it is.
CC_API int64_t cc_dense_encode(CC_ENCODE_PARAMS);
CC_API int64_t cc_dense_decode(CC_DECODE_PARAMS);

// Cast: bfloat16, or float16 (half != 0); round to nearest even; the section is padded to 4 bytes.
CC_API int64_t cc_cast_encode(CC_ENCODE_PARAMS, int half);
CC_API int64_t cc_cast_decode(CC_DECODE_PARAMS, int half);

// QSGD: per block one fp32 step, then all codes c = q + levels, `bits` bits each. gain: one factor per row.
CC_API int64_t cc_qsgd_encode(CC_ENCODE_PARAMS, const float* gain, int bits, int levels, int norm2, int stochastic,
                              int64_t block, int64_t step, int64_t rank);
CC_API int64_t cc_qsgd_decode(CC_DECODE_PARAMS, int bits, int levels, int64_t block);

// Sign: per block one fp32 scale, then one bit per element (1: negative). kind: 0 mean |y|, 1 root mean square, 2
// sum y^2 / sum |y|.
CC_API int64_t cc_sign_encode(CC_ENCODE_PARAMS, int kind, int64_t block);
CC_API int64_t cc_sign_decode(CC_DECODE_PARAMS, int64_t block);

// Top-k: exactly k elements of largest |y| per row, ties to the lowest index; rows of fewer than 2^31 elements.
// A section: per block of 65,536 elements a u32 count, then k u16 offsets inside the blocks, padded to 4 bytes, then k
// fp32 values. A section may hold fewer: then the counts sum to less than k, nothing moves, and the rest is zero bytes.
// hint: one float per row or null, last call's k-th largest |y| (0: none), overwritten with this call's.
// Decoders check counts and offsets of all messages first and write nothing when one is corrupt.
CC_API int64_t cc_topk_encode(CC_ENCODE_PARAMS, float* hint);
CC_API int64_t cc_topk_decode(CC_DECODE_PARAMS);
// The same for counts[row] <= k elements; bounds[row]: a guess that the counts[row]-th largest |y| reaches (0: none).
CC_API int64_t cc_topk_some_encode(CC_ENCODE_PARAMS, const int64_t* counts, const float* bounds);
// The same with a threshold from a sample: the s largest, 0.8 k <= s <= k.
CC_API int64_t cc_topk_sampled_encode(CC_ENCODE_PARAMS, int64_t step, int64_t rank);
CC_API int64_t cc_topk_zero(const uint8_t* wire, int64_t wire_bytes, const cc_row* rows, int64_t nrows, float* out,
                            int64_t out_numel);  // out[i] = 0 at the kept indices of one message

// Statistics of magnitudes, five doubles per row: count, sum, sum of squares, smallest, sum of log2; sums by fixed trees.
// The first also writes x <- y and uses no wire. The second copies |x| above threshold[row] to the row's place in `list`
// (first != 0), or goes on with what the list holds; NaN as a threshold leaves a row alone.
CC_API int64_t cc_magnitude_stats(CC_ENCODE_PARAMS, double* stats, int squares, int logs);
CC_API int64_t cc_tail_stats(const float* x, int64_t x_numel, float* list, int64_t list_numel, const cc_row* rows,
                             int64_t nrows, const float* threshold, double* stats, int first, int squares);

// Rand-k: k fp32 values at indices drawn from (key, offset, step), the same on all ranks; none on the wire.
// gain: one factor per row, applied to the values that are sent.
CC_API int64_t cc_randk_encode(CC_ENCODE_PARAMS, const float* gain, int64_t step);
CC_API int64_t cc_randk_decode(CC_DECODE_PARAMS, int64_t step);
CC_API int64_t cc_randk_indices(const cc_row* row, int64_t step, int64_t* out);  // row->k indices; only numel, k,
                                                                                 // offset and key are read

// Sections of variable length begin with a u32, the bytes they take in all, and lie where their capacity puts them.
// spans: int64[messages][4] (first byte of the body, end of its exact part, end of the message, number of its rows);
// the rows of message 0, then of message 1, ...: only their `wire` is read, sections lie back to back.
// compact: bodies (exact part and used bytes) one after the other into out, their bytes into sizes[messages].
// scatter: the reverse, from bodies at places int64[messages][2] (start, size); unused capacity is zeroed. All lengths
// are checked before the first write; > 0: corrupt, 1 + message*nrows + row.
CC_API int64_t cc_compact(const uint8_t* wire, int64_t wire_bytes, const cc_row* rows, int64_t nrows,
                          const int64_t* spans, int64_t messages, uint8_t* out, int64_t out_bytes, int64_t* sizes);
CC_API int64_t cc_scatter(const uint8_t* bodies, int64_t bodies_bytes, const int64_t* places, const cc_row* rows,
                         int64_t nrows, const int64_t* spans, int64_t messages, uint8_t* wires, int64_t wires_bytes);

// Shared scale: norms of each block first (levels only decide which norms can be scaled); then, under the largest norms
// of any rank, codes q + levels of `width` bits, 32/width to a word, that an integer all-reduce may sum; then their sum
// over `world` ranks back into numbers. Column `add` of the rows of encode and decode: first byte of the row's norms.
CC_API int64_t cc_shared_norms(CC_ENCODE_PARAMS, int levels, int norm2, int64_t block);
CC_API int64_t cc_shared_encode(float* x, int64_t x_numel, const uint8_t* norms, int64_t norm_bytes, uint8_t* words,
                                int64_t word_bytes, const cc_row* rows, int64_t nrows, int width, int levels,
                                int stochastic, int64_t block, int64_t step, int64_t rank);
CC_API int64_t cc_shared_decode(const uint8_t* words, int64_t word_bytes, const uint8_t* norms, int64_t norm_bytes,
                                const cc_row* rows, int64_t nrows, const uint8_t* skip, int64_t skip_numel, float* out,
                                int64_t out_numel, float scale, int accumulate, int width, int levels, int64_t block,
                                int64_t world);
// Natural: the exponent field of each element after random rounding to a power of two (a byte), then the signs (a bit,
// 1: negative), padded to 4 bytes. gain: one factor per row, applied before rounding.
CC_API int64_t cc_natural_encode(CC_ENCODE_PARAMS, const float* gain, int64_t step, int64_t rank);
CC_API int64_t cc_natural_decode(CC_DECODE_PARAMS);
// MinMax: per block its least and greatest element (fp32), then one level of `bits` bits (1 to 8) per element.
CC_API int64_t cc_minmax_encode(CC_ENCODE_PARAMS, const float* gain, int bits, int stochastic, int64_t block,
                                int64_t step, int64_t rank);
CC_API int64_t cc_minmax_decode(CC_DECODE_PARAMS, int bits, int64_t block);
// Randomised Hadamard transform in blocks (a power of two, 16..2^20) and descending powers of two at a row's end.
// Forward: x <- y, and R y as fp32 numbers at the row's place in `wire`. Inverse: R^T of one such vector (messages = 1).
CC_API int64_t cc_hadamard_forward(CC_ENCODE_PARAMS, int64_t block, int64_t step);
CC_API int64_t cc_hadamard_inverse(CC_DECODE_PARAMS, int64_t block, int64_t step);

// Permutes the blocks of `grain` elements of each row into row.k ways: y goes to x, and permuted to `wire` (fp32).
// Back: adds scale times the kept elements of one top-k message, over pieces of the permuted order, in natural order.
CC_API int64_t cc_permute_blocks(CC_ENCODE_PARAMS, int64_t grain);
CC_API int64_t cc_topk_scatter(const uint8_t* wire, int64_t wire_bytes, const cc_row* rows, int64_t nrows,
                              const int64_t* pieces, float* out, int64_t out_numel, float scale, int64_t grain);

// Natural dithering: per block one fp32 step, then all codes +-i + s (level i of s = 2^(bits-1) - 1), `bits` bits each.
CC_API int64_t cc_natural_dither_encode(CC_ENCODE_PARAMS, const float* gain, int bits, int norm2, int64_t block,
                                        int64_t step, int64_t rank);
CC_API int64_t cc_natural_dither_decode(CC_DECODE_PARAMS, int bits, int64_t block);

// Float8: per block one fp32 step, then a byte per element in E4M3FN, or E5M2 (e5m2 != 0); round to nearest even.
CC_API int64_t cc_float8_encode(CC_ENCODE_PARAMS, int e5m2, int64_t block);
CC_API int64_t cc_float8_decode(CC_DECODE_PARAMS, int e5m2, int64_t block);

// Codebook: per block one fp32 scale S, then `bits` bits per element, the rank of the nearest of 2^bits symmetric
// levels; in a window of part/65536 of each block one bit more, sent after the others. levels: the positive halves of
// the codebooks of `bits` bits (bits > 0) and of bits + 1 bits (part > 0). dot: S = |y|^2/<c,y> instead of <c,y>/|c|^2.
CC_API int64_t cc_codebook_encode(CC_ENCODE_PARAMS, const float* levels, int bits, int part, int dot, int64_t block,
                                  int64_t step);
CC_API int64_t cc_codebook_decode(CC_DECODE_PARAMS, const float* levels, int bits, int part, int64_t block,
                                  int64_t step);
// QSGD in Elias codes, of variable length: u32 bytes used, one fp32 step per block, two bits of form per block, one bit
// stream (reference/elias.py has the layout). A corrupt message: 1 + message*nrows + row, and its row is not written.
CC_API int64_t cc_elias_encode(CC_ENCODE_PARAMS, const float* gain, int bits, int levels, int norm2, int stochastic,
                               int64_t block, int64_t step, int64_t rank);
CC_API int64_t cc_elias_decode(CC_DECODE_PARAMS, int bits, int levels, int64_t block);

// Two means: per block the mean of its negative elements and that of the others (fp32), then one bit per element
// (1: negative).
CC_API int64_t cc_two_means_encode(CC_ENCODE_PARAMS, int64_t block);
CC_API int64_t cc_two_means_decode(CC_DECODE_PARAMS, int64_t block);

// Ternary: per block one fp32 size, then five elements -1, 0 or 1 to a byte. clip: 0, or sizes are at most clip times the
// block's root mean square.
CC_API int64_t cc_ternary_encode(CC_ENCODE_PARAMS, const float* gain, float clip, int64_t block, int64_t step,
                                 int64_t rank);
CC_API int64_t cc_ternary_decode(CC_DECODE_PARAMS, int64_t block);
// Sketches: k sums per row (column k), the same random numbers on all ranks. Count: one sum and sign per element, drawn
// from (key, element, step). Gauss: every element in every sum, times one of 65536 numbers (quantiles) over sqrt k.
// gain: one factor per row.
CC_API int64_t cc_count_encode(CC_ENCODE_PARAMS, const float* gain, int64_t step);
CC_API int64_t cc_count_decode(CC_DECODE_PARAMS, int64_t step);
CC_API int64_t cc_gauss_encode(CC_ENCODE_PARAMS, const float* gain, const float* quantiles, int64_t step);
CC_API int64_t cc_gauss_decode(CC_DECODE_PARAMS, const float* quantiles, int64_t step);

// Low rank: matrices M (rows x columns) of a bucket and their factors P and Q, M = P Q^T, kept transposed: rank lines of
// `rows` numbers each, and of `columns` each.
typedef struct cc_matrix {  // int64[8]; places count elements
    int64_t residual;       // M
    int64_t bucket;         // the matrix's gradient, or its place in out (-1: not wanted)
    int64_t rows, columns, rank;
    int64_t p, q;   // first elements of its factors
    int64_t index;  // entry in status[1 + index] and skip[index]
} cc_matrix;
#define CC_LOWRANK_PARAMS \
    float *residual, int64_t residual_numel, const cc_matrix *matrices, int64_t count
#define CC_LOWRANK_ARGS residual, residual_numel, matrices, count
// M <- M + scale * gradient (elements that would not be finite stay; status as for encoders), then P = M Q, or Q = M^T P.
CC_API int64_t cc_lowrank_project(CC_LOWRANK_PARAMS, const float* gradient, int64_t gradient_numel, float* p,
                                  int64_t p_numel, const float* q, int64_t q_numel, uint8_t* status,
                                  int64_t status_numel, float scale);
CC_API int64_t cc_lowrank_backproject(CC_LOWRANK_PARAMS, const float* gradient, int64_t gradient_numel, const float* p,
                                      int64_t p_numel, float* q, int64_t q_numel, uint8_t* status,
                                      int64_t status_numel, float scale);
// out = scale * P Q^T (or added to it; null: not wanted), and M <- M - sign * p_sent q_sent^T, which have the sizes of p
// and q. A skipped matrix: out = 0, and M stays.
CC_API int64_t cc_lowrank_reconstruct(CC_LOWRANK_PARAMS, float* out, int64_t out_numel, const float* p, int64_t p_numel,
                                      const float* q, int64_t q_numel, const float* p_sent, const float* q_sent,
                                      const uint8_t* skip, int64_t skip_numel, float scale, int accumulate, float sign);
// Factors: rows of the table give k lines of numel numbers from element x on. Orthonormal lines (Gram-Schmidt in double
// precision; a line of no more than 1e-6 of its norm outside those before it becomes zero). Zero lines drawn anew from
// N(0, 1): the quantile whose number is the 16-bit dither of the element, with the line in the place of the rank, stream 6.
CC_API int64_t cc_lowrank_orthonormal(float* factor, int64_t numel, const cc_row* rows, int64_t nrows);
CC_API int64_t cc_lowrank_refresh(float* factor, int64_t numel, const cc_row* rows, int64_t nrows,
                                  const float* quantiles, int64_t step);

// Optimizers with flat fp32 moments (reference/adam.py has the formulas). One piece per parameter, which may lie
// anywhere and be fp32, bfloat16 or float16, as may its gradient. All pieces are checked before the first is touched.
typedef struct cc_piece {  // int64[5]
    int64_t param, grad;   // addresses
    int64_t numel;         // elements, may be 0
    int64_t start;         // its first element in the moments
    int64_t types;  // of the parameter, plus 4 times that of the gradient: 0 fp32, 1 bfloat16, 2 float16, 3 not there
} cc_piece;
// rest1 = 1 - beta1, rest2 = 1 - beta2, rest = 1 - beta. l2 = 0, decay = 0: their terms are left out.
CC_API int64_t cc_adam(const cc_piece* pieces, int64_t count, float* mean, float* square, int64_t numel, float beta1,
                       float rest1, float beta2, float rest2, float scale, float rate, float correction, float eps,
                       float decay, float l2);
// out may be mean. A gradient that is not there counts as zeros; a parameter must be there where l2 is not 0.
// status[0] |= 1 where a gradient is not finite.
CC_API int64_t cc_momentum(const cc_piece* pieces, int64_t count, const float* mean, float* out, int64_t numel,
                           float beta, float rest, float scale, float l2, uint8_t* status);
CC_API int64_t cc_descend(const cc_piece* pieces, int64_t count, const float* mean, const float* denominator,
                          int64_t numel, float rate, float decay);

#ifdef __cplusplus
}
#endif
#endif
