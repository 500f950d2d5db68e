"""Keys: a function of seed and name, spread over 64 bits, the same on every machine."""

from __future__ import annotations

from hashlib import blake2b

from compcomm.core.random import key


def test_key_is_keyed_blake2_of_the_name() -> None:
    digest = blake2b(b"layer.weight", digest_size=8, key=(5).to_bytes(8, "little", signed=True)).digest()
    assert key(5, "layer.weight") == int.from_bytes(digest, "little", signed=True)
    assert key(0, "") == key(0, "") and -(2**63) <= key(-1, "x") < 2**63


def test_seeds_and_names_give_other_keys() -> None:
    keys = {key(seed, name) for seed in (-1, 0, 1, 2**40) for name in ("a", "b", "a.b", "ab", "")}
    assert len(keys) == 20
