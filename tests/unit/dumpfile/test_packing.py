# SPDX-License-Identifier: GPL-2.0-or-later
"""A batch is packed page by page: zeros take nothing, noise is stored as it is, the rest shrinks and comes back."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kdumpd.dumpfile import native
from kdumpd.dumpfile.codecs import Unpacker
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.dumpfile.native import PageBuffer
from kdumpd.dumpfile.packing import PackedPages, Packing, look_random

COUNT = 200
NATIVE = [Codec.ZSTD, Codec.ZLIB]


def batch(seed: int) -> PageBuffer:
    """Text, noise in runs and alone, zeros, and pages of one value."""
    chance = random.Random(seed)
    buffer = PageBuffer(COUNT)
    for index in range(COUNT):
        kind = chance.randrange(5) if index % 64 < 32 else 1
        text = b" ".join(b"%d" % chance.randrange(10_000) for _ in range(1000))
        page = [bytes(BLOCK_SIZE), chance.randbytes(BLOCK_SIZE), text, bytes([index % 255 + 1]) * BLOCK_SIZE, text][
            kind
        ]
        buffer.pages[index] = np.frombuffer(page[:BLOCK_SIZE].ljust(BLOCK_SIZE, b"x"), dtype=np.uint8)
    return buffer


def unpacked(packed: PackedPages) -> list[bytes]:
    unpacker = Unpacker()
    parts = iter(packed.parts)
    return [
        unpacker.page(bytes(next(parts)), int(flags), "page") if size else bytes(BLOCK_SIZE)
        for size, flags in zip(packed.sizes, packed.flags, strict=True)
    ]


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD, Codec.ZLIB])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_packed_is_unpacked(codec: Codec, seed: int) -> None:
    source = batch(seed)
    packed = Packing(codec, None)(source, PageBuffer(COUNT), COUNT)
    assert unpacked(packed) == [page.tobytes() for page in source.pages]
    assert all(len(part) <= BLOCK_SIZE for part in packed.parts)
    assert [bool(size) for size in packed.sizes] == [bool(page.any()) for page in source.pages]
    if codec is not Codec.RAW:
        text = [index for index in range(COUNT) if 0 < packed.sizes[index] < BLOCK_SIZE]
        assert len(text) > 30
        assert not look_random(source.pages[text]).any()


@pytest.mark.parametrize("codec", NATIVE)
def test_noise_is_stored_as_it_is(codec: Codec) -> None:
    source = PageBuffer(64)
    source.pages[:] = np.frombuffer(random.Random(1).randbytes(64 * BLOCK_SIZE), dtype=np.uint8).reshape(64, -1)
    source.pages[7] = 7
    packed = Packing(codec, None)(source, PageBuffer(64), 64)
    assert [index for index in range(64) if packed.flags[index]] == [7]
    assert look_random(source.pages).sum() == 63


@pytest.mark.parametrize("codec", NATIVE)
def test_a_part_of_a_batch_is_the_same_as_in_the_whole(codec: Codec) -> None:
    whole = Packing(codec, None)(batch(0), PageBuffer(COUNT), COUNT)
    for first, last in [(0, 0), (0, 3), (17, 100), (100, COUNT)]:
        some = whole.some(first, last)
        assert unpacked(some) == unpacked(whole)[first:last]
        assert sum(map(len, some.parts)) == int(some.sizes.sum())


@pytest.mark.parametrize("codec", NATIVE)
@pytest.mark.parametrize("level", [1, 5])
def test_batches_of_groups_give_the_same_bytes_in_any_size(codec: Codec, level: int) -> None:
    """However many pages are packed at once, by whichever compressor, new or used."""
    source = batch(3)
    whole = Packing(codec, level)(source, PageBuffer(COUNT), COUNT)
    used = Packing(codec, level)
    parts = []
    for first in range(0, COUNT, 48):
        piece = PageBuffer(48)
        count = min(48, COUNT - first)
        piece.pages[:count] = source.pages[first : first + count]
        parts += [bytes(part) for part in used(piece, PageBuffer(48), count).parts]
    assert parts == [bytes(part) for part in whole.parts]


@pytest.mark.parametrize("codec", NATIVE)
def test_without_the_library_pythons_module_packs(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_ZSTD", None)
    monkeypatch.setattr(native, "_DEFLATE", None)
    source = batch(1)
    packed = Packing(codec, None)(source, PageBuffer(COUNT), COUNT)
    assert unpacked(packed) == [page.tobytes() for page in source.pages]
