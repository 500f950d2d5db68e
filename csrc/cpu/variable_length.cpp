// Sections of variable length: the gaps between them are closed before sending and opened again on arrival.
// A section begins with a u32, the bytes it takes in all. Bodies come from peers: all lengths are checked before the
// first byte is written.
#include "rows.h"

namespace {

struct Span {  // one line of `spans`
    int64_t first, exact, end, count;
};
struct Place {  // one line of `places`
    int64_t start, size;
};

// The end of row i's capacity: the next row of its message, or the message's end.
CC_INLINE int64_t next_edge(const cc_row* rows, int64_t i, int64_t last, int64_t end) {
    return i + 1 < last ? rows[i + 1].wire : end;
}

// Spans and rows describe messages of sections, back to back, inside `total` bytes: 0, or an error code.
static int64_t check_layout(const cc_row* rows, int64_t nrows, const Span* spans, int64_t messages, int64_t total) {
    int64_t row = 0;
    for (int64_t m = 0; m < messages; m++) {
        const Span s = spans[m];
        if (s.first < 0 || s.first > s.exact || s.exact > s.end || s.end > total) return CC_BAD_PARAMETER;
        if (s.count < 0 || s.count > nrows - row || (s.count == 0 && s.exact != s.end)) return CC_BAD_PARAMETER;
        const int64_t last = row + s.count;
        int64_t at = s.exact;
        for (; row < last; row++) {
            const int64_t next = next_edge(rows, row, last, s.end);
            if (rows[row].wire != at || next <= at || next > s.end || (next - at) % 4) return CC_BAD_ROW(row);
            at = next;
        }
    }
    return row == nrows ? 0 : CC_BAD_PARAMETER;
}

// The length that a section states, or 0 when that cannot be true; `room`: bytes that are there.
CC_INLINE int64_t used(const uint8_t* section, int64_t room, int64_t capacity) {
    uint32_t bytes;
    if (room < 4) return 0;
    memcpy(&bytes, section, 4);
    const int64_t most = room < capacity ? room : capacity;
    return bytes >= 4 && bytes % 4 == 0 && bytes <= most ? bytes : 0;
}

}  // namespace

CC_KERNEL(cc_compact,
          (const uint8_t* wire, int64_t wire_bytes, const cc_row* rows, int64_t nrows, const int64_t* spans_at,
           int64_t messages, uint8_t* out, int64_t out_bytes, int64_t* sizes),
          (wire, wire_bytes, rows, nrows, spans_at, messages, out, out_bytes, sizes)) {
    const Span* spans = (const Span*)spans_at;
    if (int64_t code = check_layout(rows, nrows, spans, messages, wire_bytes)) return code;
    int64_t to = 0;
    for (int64_t m = 0, row = 0; m < messages; m++) {
        to += spans[m].exact - spans[m].first;
        for (const int64_t last = row + spans[m].count; row < last; row++) {
            const int64_t at = rows[row].wire, capacity = next_edge(rows, row, last, spans[m].end) - at;
            const int64_t bytes = used(wire + at, capacity, capacity);
            if (!bytes) return 1 + m * nrows + row;
            to += bytes;
        }
    }
    if (to > out_bytes) return CC_BAD_PARAMETER;
    for (int64_t m = 0, row = 0; m < messages; m++) {
        uint8_t* const body = out;
        const int64_t exact = spans[m].exact - spans[m].first;
        if (exact) memcpy(out, wire + spans[m].first, (size_t)exact);
        out += exact;
        for (const int64_t last = row + spans[m].count; row < last; row++) {
            const uint8_t* section = wire + rows[row].wire;
            const int64_t capacity = next_edge(rows, row, last, spans[m].end) - rows[row].wire;
            const int64_t bytes = used(section, capacity, capacity);
            memcpy(out, section, (size_t)bytes);
            out += bytes;
        }
        sizes[m] = out - body;
    }
    return 0;
}

CC_KERNEL(cc_scatter,
          (const uint8_t* bodies, int64_t bodies_bytes, const int64_t* places_at, const cc_row* rows, int64_t nrows,
           const int64_t* spans_at, int64_t messages, uint8_t* wires, int64_t wires_bytes),
          (bodies, bodies_bytes, places_at, rows, nrows, spans_at, messages, wires, wires_bytes)) {
    const Span* spans = (const Span*)spans_at;
    const Place* places = (const Place*)places_at;
    if (int64_t code = check_layout(rows, nrows, spans, messages, wires_bytes)) return code;
    for (int64_t m = 0, row = 0; m < messages; m++) {
        if (!inside(places[m].start, places[m].size, bodies_bytes)) return CC_BAD_PARAMETER;
        const uint8_t* at = bodies + places[m].start;
        int64_t left = places[m].size - (spans[m].exact - spans[m].first);
        if (left < 0) return 1 + m * nrows + row;
        at += spans[m].exact - spans[m].first;
        for (const int64_t last = row + spans[m].count; row < last; row++) {
            const int64_t capacity = next_edge(rows, row, last, spans[m].end) - rows[row].wire;
            const int64_t bytes = used(at, left, capacity);
            if (!bytes) return 1 + m * nrows + row;
            at += bytes, left -= bytes;
        }
        if (left) return 1 + m * nrows + row;
    }
    for (int64_t m = 0, row = 0; m < messages; m++) {
        const uint8_t* at = bodies + places[m].start;
        const int64_t exact = spans[m].exact - spans[m].first;
        if (exact) memcpy(wires + spans[m].first, at, (size_t)exact);
        at += exact;
        for (const int64_t last = row + spans[m].count; row < last; row++) {
            uint8_t* section = wires + rows[row].wire;
            const int64_t capacity = next_edge(rows, row, last, spans[m].end) - rows[row].wire;
            uint32_t bytes;
            memcpy(&bytes, at, 4);
            memcpy(section, at, bytes);
            memset(section + bytes, 0, (size_t)(capacity - bytes));
            at += bytes;
        }
    }
    return 0;
}
