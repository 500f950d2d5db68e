"""Forged messages: what a decoder makes of bytes that no encoder wrote.

A case is a true message of some compressor or reducer, damaged in a few places, and read by the reference and by the
kernels of every instruction set here. Nothing may crash, hang, or write outside its tensors; what is read is an error
that says which message is wrong, or a result, and then all implementations have the same. (Numbers are no fault: a
forged scale of infinity is one that a sender may send. That they all read the same is what can be demanded.)

Compressors and reducers are those of ``tests/contract/cases.py``, so a new one is fuzzed without a line here. A case
follows from (seed, number) alone. For a night, and again for one case:

    python -m tests.fuzz --seconds 28800 --seed 1
    python -m tests.fuzz --seed 1 --only 4711

Under the address and undefined-behaviour sanitizers, which see a read outside a tensor too:

    cmake -S csrc -B build/sanitized -DCC_OPTIMIZE=-O1 -DCMAKE_CXX_FLAGS=\
"-g1 -fsanitize=address,undefined -fno-sanitize-recover=all" && cmake --build build/sanitized
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
COMPCOMM_LIBRARY=build/sanitized/libcompcomm.so python -m tests.fuzz --seconds 3600
"""
