// Where things lie in a top-k section: counts per block of 65,536 elements, 16-bit offsets, values. Row.k is the
// capacity of the latter two; the counts sum to k or less, and unused bytes are zero.
#pragma once
#include "rows.h"

namespace {

constexpr int64_t TOPK_BLOCK = 65536, TOPK_MAX_NUMEL = ((int64_t)1 << 31) - 1;  // candidates hold 31-bit indices

// Payload sections are aligned to 4 bytes in a message, a message to nothing.
typedef uint16_t loose16 __attribute__((aligned(1), may_alias));
typedef uint32_t loose32 __attribute__((aligned(1), may_alias));
typedef float loosef __attribute__((aligned(1), may_alias));

CC_INLINE bool topk_row_valid(const cc_row& r) {
    return r.numel >= 0 && r.numel <= TOPK_MAX_NUMEL && r.k >= 0 && r.k <= r.numel;
}
CC_INLINE int64_t topk_blocks(const cc_row& r) { return ceil_div(r.numel, TOPK_BLOCK); }
CC_INLINE int64_t topk_values_at(const cc_row& r) { return 4 * topk_blocks(r) + pad4(2 * r.k); }
CC_INLINE int64_t topk_bytes(const cc_row& r) { return topk_values_at(r) + 4 * r.k; }

}  // namespace
