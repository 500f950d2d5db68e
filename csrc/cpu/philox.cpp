// Philox4x32-10 blocks for tests and for callers that want the raw stream.
#include "philox.h"

CC_KERNEL(cc_philox, (uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t key, int64_t n, uint32_t* out),
          (c0, c1, c2, c3, key, n, out)) {
    const PhiloxStream stream(c1, c2, c3, key);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        I16 words[1][4];
        int32_t t[4][16];
        philox_vectors<1>(c0 + (uint32_t)i, stream, words);
        for (int w = 0; w < 4; w++) store(t[w], words[0][w]);
        for (int l = 0; l < 16; l++)
            for (int w = 0; w < 4; w++) out[4 * (i + l) + w] = (uint32_t)t[w][l];
    }
    for (; i < n; i++) {
        Philox r = philox(c0 + (uint32_t)i, c1, c2, c3, key);
        for (int w = 0; w < 4; w++) out[4 * i + w] = r.w[w];
    }
    return 0;
}
