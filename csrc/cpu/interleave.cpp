// Blocks dealt out like cards: block i of a row goes to share (i + first) % ways, and the shares lie one after the other.
#include "rows.h"

namespace {

// Shares of a row: how many blocks come before share s.
struct Deal {
    int64_t ways, blocks, first;
    Deal(int64_t numel, int64_t grain, int64_t w)
        : ways(w), blocks(ceil_div(numel, grain)), first((w - blocks % w) % w) {}
    // Block i as a place among the shares. Every share has blocks/ways, and the last blocks%ways shares one more.
    int64_t place(int64_t i) const {
        const int64_t each = blocks / ways, share = (i + first) % ways, turn = (i + first) / ways;
        const int64_t more = share > first ? share - first : 0;
        const bool full = first != 0;  // then shares before `first` miss turn 0
        return share * each + (full ? more : 0) + turn - (full && share < first ? 1 : 0);
    }
};

}  // namespace

// rows: int64[nrows][4], (first natural element, first dealt element, elements, ways); a negative start: row absent.
CC_KERNEL(cc_interleave,
          (const float* source, int64_t source_numel, float* target, int64_t target_numel, const int64_t* rows,
           int64_t nrows, int64_t grain, float scale, int accumulate, int inverse),
          (source, source_numel, target, target_numel, rows, nrows, grain, scale, accumulate, inverse)) {
    if (grain <= 0) return CC_BAD_PARAMETER;
    for (int64_t r = 0; r < nrows; r++, rows += 4) {
        const int64_t n = rows[2], ways = rows[3], from = inverse ? rows[1] : rows[0], to = inverse ? rows[0] : rows[1];
        if (from < 0 || to < 0) continue;
        if (n < 0 || n > MAX_NUMEL || ways < 1 || !inside(from, n, source_numel) || !inside(to, n, target_numel))
            return CC_BAD_ROW(r);
        const Deal deal(n, grain, ways);
        for (int64_t i = 0; i < deal.blocks; i++) {
            const int64_t natural = i * grain, dealt = deal.place(i) * grain;
            const int64_t count = n - natural < grain ? n - natural : grain;
            const float* p = source + from + (inverse ? dealt : natural);
            float* q = target + to + (inverse ? natural : dealt);
            if (!accumulate && scale == 1.0f) memcpy(q, p, 4 * (size_t)count);
            else if (!accumulate)
                for (int64_t j = 0; j < count; j++) q[j] = p[j] * scale;
            else
                for (int64_t j = 0; j < count; j++) q[j] = q[j] + p[j] * scale;
        }
    }
    return 0;
}
