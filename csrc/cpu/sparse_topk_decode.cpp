// Top-k messages back into a dense tensor. A number that came from a peer is checked before it is used as an address,
// and all sections are checked before the first write: a corrupt message changes nothing.
//
// One block of 65,536 elements (256 KiB) at a time: cleared, then each message's offsets of that block are added while
// it lies in the cache, in message order. So W messages cost about one pass of memset and no cache misses.
#include "block_order.h"
#include "topk_section.h"

namespace {

static bool section_valid(const uint8_t* section, const cc_row& r) {
    const loose32* counts = (const loose32*)section;
    const loose16* offsets = (const loose16*)(section + 4 * topk_blocks(r));
    int64_t sum = 0, blocks = topk_blocks(r);
    for (int64_t b = 0; b < blocks; b++) {
        int64_t room = r.numel - b * TOPK_BLOCK;
        if (counts[b] > (room < TOPK_BLOCK ? room : TOPK_BLOCK)) return false;
        sum += counts[b];
    }
    if (sum > r.k) return false;  // fewer is right: a selection may leave a part of its capacity unused
    for (int64_t b = 0; b < blocks; b++) {
        uint32_t count = counts[b], descents = 0;
        for (uint32_t i = 1; i < count; i++) descents |= offsets[i - 1] >= offsets[i];
        if (descents || (count && b * TOPK_BLOCK + offsets[count - 1] >= r.numel)) return false;
        offsets += count;
    }
    return true;
}

struct Cursor {  // where a message's row has been read to
    const loose16* offset;
    const loosef* value;
};

static void decode_row(const uint8_t* wires, int64_t messages, int64_t stride, const cc_row& r, float* out, float scale,
                       bool accumulate) {
    constexpr int64_t TOGETHER = 32;
    for (int64_t first = 0; first < messages || first == 0; first += TOGETHER) {
        int64_t some = messages - first < TOGETHER ? messages - first : TOGETHER;
        Cursor cursor[TOGETHER];
        const uint8_t* base = wires + first * stride + r.wire;
        for (int64_t m = 0; m < some; m++)
            cursor[m] = {(const loose16*)(base + m * stride + 4 * topk_blocks(r)),
                         (const loosef*)(base + m * stride + topk_values_at(r))};
        for (int64_t b = 0; b < topk_blocks(r); b++) {
            int64_t room = r.numel - b * TOPK_BLOCK;
            float* block = out + b * TOPK_BLOCK;
            if (!accumulate && first == 0) memset(block, 0, sizeof(float) * (size_t)(room < TOPK_BLOCK ? room : TOPK_BLOCK));
            for (int64_t m = 0; m < some; m++) {
                uint32_t count = ((const loose32*)(base + m * stride))[b];
                Cursor& at = cursor[m];
                for (uint32_t i = 0; i < count; i++) block[at.offset[i]] = block[at.offset[i]] + at.value[i] * scale;
                at.offset += count;
                at.value += count;
            }
        }
    }
}

// 0, or the code of the first row that does not fit or of the first section that cannot be true.
static int64_t check(const uint8_t* wires, int64_t messages, int64_t stride, int64_t wire_bytes, const cc_row* rows,
                     int64_t nrows, const uint8_t* skip, int64_t skip_numel, int64_t out_numel) {
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1) continue;
        if (!topk_row_valid(r) || !inside(r.x, r.numel, out_numel) || !inside(r.wire, topk_bytes(r), wire_bytes))
            return CC_BAD_ROW(i);
        if (skip && (r.index < 0 || r.index >= skip_numel)) return CC_BAD_ROW(i);
    }
    for (int64_t i = 0; i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1 || (skip && skip[r.index])) continue;
        for (int64_t m = 0; m < messages; m++)
            if (!section_valid(wires + m * stride + r.wire, r)) return 1 + m * nrows + i;
    }
    return 0;
}

}  // namespace

CC_KERNEL(cc_topk_decode, (CC_DECODE_PARAMS), (CC_DECODE_ARGS)) {
    int64_t code = check(wires, messages, stride, wire_bytes, rows, nrows, skip, skip_numel, out_numel);
    for (int64_t i = 0; code == 0 && i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x != -1) decode_row(wires, skip[r.index] ? 0 : messages, stride, r, out + r.x, scale, accumulate != 0);
    }
    return code;
}

// pieces: int64[nrows][3], (elements of the row's parameter, the row's first permuted element, ways); row.x is the
// parameter's first element in `out`.
CC_KERNEL(cc_topk_scatter,
          (const uint8_t* wire, int64_t wire_bytes, const cc_row* rows, int64_t nrows, const int64_t* pieces, float* out,
           int64_t out_numel, float scale, int64_t grain),
          (wire, wire_bytes, rows, nrows, pieces, out, out_numel, scale, grain)) {
    if (grain <= 0 || grain > 65536 || grain & (grain - 1)) return CC_BAD_PARAMETER;
    const int shift = __builtin_ctzll((uint64_t)grain);
    int64_t code = check(wire, 1, wire_bytes, wire_bytes, rows, nrows, nullptr, 0, out_numel);
    for (int64_t i = 0; code == 0 && i < nrows; i++) {
        const cc_row& r = rows[i];
        const int64_t whole = pieces[3 * i], start = pieces[3 * i + 1], ways = pieces[3 * i + 2];
        if (r.x == -1) continue;
        if (whole < 0 || whole > TOPK_MAX_NUMEL || ways < 1 || ways > TOPK_MAX_NUMEL || !inside(r.x, whole, out_numel) ||
            !inside(start, r.numel, whole))
            return CC_BAD_ROW(i);
    }
    for (int64_t i = 0; code == 0 && i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1 || r.numel == 0) continue;
        const BlockOrder order(pieces[3 * i], pieces[3 * i + 2], grain);
        const int64_t start = pieces[3 * i + 1];
        const loose32* counts = (const loose32*)(wire + r.wire);
        const loose16* offset = (const loose16*)(wire + r.wire + 4 * topk_blocks(r));
        const loosef* value = (const loosef*)(wire + r.wire + topk_values_at(r));
        for (int64_t b = 0; b < topk_blocks(r); b++)
            for (uint32_t j = 0; j < counts[b]; j++) {
                const int64_t permuted = start + b * TOPK_BLOCK + *offset++;
                float* to = out + r.x + (order.natural((uint32_t)(permuted >> shift)) << shift) + (permuted & (grain - 1));
                *to = *to + *value++ * scale;
            }
    }
    return code;
}

CC_KERNEL(cc_topk_zero,
          (const uint8_t* wire, int64_t wire_bytes, const cc_row* rows, int64_t nrows, float* out, int64_t out_numel),
          (wire, wire_bytes, rows, nrows, out, out_numel)) {
    int64_t code = check(wire, 1, wire_bytes, wire_bytes, rows, nrows, nullptr, 0, out_numel);
    for (int64_t i = 0; code == 0 && i < nrows; i++) {
        const cc_row& r = rows[i];
        if (r.x == -1) continue;
        const loose32* counts = (const loose32*)(wire + r.wire);
        const loose16* offset = (const loose16*)(wire + r.wire + 4 * topk_blocks(r));
        float* block = out + r.x;
        for (int64_t b = 0; b < topk_blocks(r); b++, block += TOPK_BLOCK)
            for (uint32_t j = 0; j < counts[b]; j++) block[*offset++] = 0.0f;
    }
    return code;
}
