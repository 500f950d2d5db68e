// Memory that a thread keeps between calls, so that the steady state allocates nothing. Freed when the thread ends.
#pragma once
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

namespace {

struct Scratch { size_t bytes; };  // a header; the memory follows it, 64 bytes further

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static void scratch_init() { pthread_key_create(&scratch_key, free); }

// At least `bytes` bytes, aligned to 64; the contents do not survive the next call. Null when memory is out.
static void* scratch(size_t bytes) {
    pthread_once(&scratch_once, scratch_init);
    Scratch* own = (Scratch*)pthread_getspecific(scratch_key);
    if (!own || own->bytes < bytes) {
        free(own);
        pthread_setspecific(scratch_key, nullptr);
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, bytes + 64)) return nullptr;
        own = (Scratch*)memory;
        own->bytes = bytes;
        pthread_setspecific(scratch_key, own);
    }
    return (uint8_t*)own + 64;
}

}  // namespace
