# SPDX-License-Identifier: GPL-2.0-or-later
"""A batch is packed page by page: zeros take nothing, noise is stored as it is, the rest shrinks and comes back."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import random

import numpy as np
import pytest

from kdumpd.dumpfile import isal, native
from kdumpd.dumpfile import packing as packing_module
from kdumpd.dumpfile.codecs import Unpacker
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.dumpfile.isal import IsalCompressor
from kdumpd.dumpfile.native import NativeCompressor, PageBuffer
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


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """As on a machine that has not installed them."""
    for module in (native, isal):
        known = module.load_library
        monkeypatch.setattr(module, "load_library", lambda name, known=known: None if name in missing else known(name))
    if "libzstd.so.1" in missing:
        monkeypatch.setattr(native, "_ZSTD", None)


@pytest.mark.parametrize("codec", NATIVE)
def test_without_the_library_pythons_module_packs(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "libzstd.so.1", "libdeflate.so.0", "libisal.so.2")
    source = batch(1)
    packing = Packing(codec, None)
    assert isinstance(packing._compressor, packing_module._PageByPage)
    packed = packing(source, PageBuffer(COUNT), COUNT)
    assert unpacked(packed) == [page.tobytes() for page in source.pages]


def test_zlib_is_packed_by_the_fastest_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One library or the other: the same pages, and nearly the same sizes."""
    source = batch(2)
    sizes = []
    for kind, missing in ((IsalCompressor, ()), (NativeCompressor, ("libisal.so.2",))):
        without(monkeypatch, *missing)
        for level in (None, 1):
            packing = Packing(Codec.ZLIB, level)
            assert isinstance(packing._compressor, kind)
            packed = packing(source, PageBuffer(COUNT), COUNT)
            assert unpacked(packed) == [page.tobytes() for page in source.pages]
        sizes.append(int(packed.sizes.sum()))
    assert sizes[0] != sizes[1]
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[1]
    # Levels above 1 are asked for by who wants a small dump, and ISA-L has none that makes one.
    assert isinstance(Packing(Codec.ZLIB, 2)._compressor, NativeCompressor)


class _Faulty:
    """libisal, but for what it answers."""

    def __init__(self, answer: int) -> None:
        library = native.load_library("libisal.so.2")
        assert library is not None
        self._pack = library.isal_deflate_stateless
        self.isal_deflate_stateless_init = library.isal_deflate_stateless_init
        self._answer = answer

    def isal_deflate_stateless(self, state: object) -> int:
        return int(self._pack(state)) or self._answer


class _Changed(_Faulty):
    """A state in which nothing lies where it was."""

    def isal_deflate_stateless(self, state: object) -> int:
        return 0


@pytest.mark.parametrize("library", [_Faulty(-4), _Faulty(-5), _Changed(0)])
def test_a_library_that_does_not_do_what_it_should_is_not_taken(
    library: _Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isal, "load_library", lambda name: library)
    with pytest.raises(OSError, match="libisal"):
        IsalCompressor()
    assert isinstance(Packing(Codec.ZLIB, None)._compressor, NativeCompressor)


def test_pages_that_a_library_fails_at_are_stored_as_they_are() -> None:
    source = batch(5)
    packing = Packing(Codec.ZLIB, None)
    compressor = packing._compressor
    assert isinstance(compressor, IsalCompressor)
    good, turns = compressor._pack, itertools.cycle((0, 0, -3))
    compressor._pack = lambda state: good(state) or next(turns)  # type: ignore[assignment] # a function of ctypes
    packed = packing(source, PageBuffer(COUNT), COUNT)
    assert unpacked(packed) == [page.tobytes() for page in source.pages]
    whole = Packing(Codec.ZLIB, None)(source, PageBuffer(COUNT), COUNT)
    assert np.count_nonzero(packed.flags) < np.count_nonzero(whole.flags)


@pytest.mark.parametrize("level", [1, 5])
@pytest.mark.parametrize("codec", NATIVE)
def test_nothing_is_touched_beside_the_pages(codec: Codec, level: int) -> None:
    """The libraries go by addresses: here what lies before and behind the pages cannot be read."""
    page = mmap.PAGESIZE
    rooms = [mmap.mmap(-1, COUNT * BLOCK_SIZE + 2 * page) for _ in range(2)]
    source, target = (PageBuffer(COUNT, memoryview(room)[page:-page]) for room in rooms)
    source.pages[:] = batch(4).pages
    packing = Packing(codec, level)
    pid = os.fork()
    if pid == 0:
        protect = ctypes.CDLL(None).mprotect
        for buffer in (source, target):
            start = buffer.pages.ctypes.data
            for wall in (start - page, start + COUNT * BLOCK_SIZE):
                if protect(ctypes.c_void_p(wall), ctypes.c_size_t(page), 0):
                    os._exit(3)
        packed = packing(source, target, COUNT)
        os._exit(0 if unpacked(packed) == [each.tobytes() for each in source.pages] else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
