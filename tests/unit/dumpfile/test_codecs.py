# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages through every codec and back; what is no page is refused."""

from __future__ import annotations

import contextlib
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.dumpfile.codecs import Unpacker, packer
from kdumpd.dumpfile.diskdump import BLOCK_SIZE, Codec
from kdumpd.errors import DumpFormatError, UnsupportedError

PACKING = [Codec.ZLIB, Codec.LZO, Codec.SNAPPY, Codec.ZSTD]
PAGES = st.builds(
    lambda piece, noise: (piece * BLOCK_SIZE)[: BLOCK_SIZE - len(noise)] + noise,
    st.binary(min_size=1, max_size=100),
    st.binary(max_size=BLOCK_SIZE),
)


@pytest.mark.parametrize("codec", PACKING)
@settings(max_examples=60)
@given(page=PAGES)
def test_a_page_comes_back(codec: Codec, page: bytes) -> None:
    assert Unpacker().page(packer(codec)(memoryview(page)), codec, "page") == page


@pytest.mark.parametrize("codec", [*PACKING, Codec.RAW, 0x40])
@settings(max_examples=150)
@given(junk=st.binary(max_size=64))
def test_junk_is_a_sentence(codec: int, junk: bytes) -> None:
    with pytest.raises(DumpFormatError, match=r"^page 1 "):
        Unpacker().page(junk, codec, "page 1")


@pytest.mark.parametrize("codec", PACKING)
def test_a_changed_byte_is_another_page_or_a_sentence(codec: Codec) -> None:
    packed = packer(codec)(memoryview(bytes(range(256)) * 16))
    for at in range(len(packed)):
        damaged = packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :]
        with contextlib.suppress(DumpFormatError):
            assert len(Unpacker().page(damaged, codec, "page")) == BLOCK_SIZE


def test_no_page_of_another_size_is_unpacked() -> None:
    unpacker = Unpacker()
    big = memoryview(bytes(100 << 20))
    for data, flags in [
        (zlib.compress(big), Codec.ZLIB),
        (zlib.compress(b"short"), Codec.ZLIB),
        (packer(Codec.LZO)(big), Codec.LZO),
        (packer(Codec.LZO)(big[:100]), Codec.LZO),
        (packer(Codec.SNAPPY)(big), Codec.SNAPPY),
        (packer(Codec.SNAPPY)(big[:5000]), Codec.SNAPPY),
        (packer(Codec.SNAPPY)(big[:100]), Codec.SNAPPY),
        (b"x" * 4095, Codec.RAW),
    ]:
        with pytest.raises(DumpFormatError, match="page 1"):
            unpacker.page(data, flags, "page 1")


@pytest.mark.parametrize(("codec", "package"), [(Codec.LZO, "python3-lzo"), (Codec.SNAPPY, "python3-snappy")])
def test_a_missing_library_is_named(codec: Codec, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packer(codec)(memoryview(bytes(BLOCK_SIZE)))
    monkeypatch.setitem(sys.modules, package.removeprefix("python3-"), None)
    with pytest.raises(UnsupportedError) as found:
        packer(codec)
    assert package in str(found.value)
    with pytest.raises(UnsupportedError):
        Unpacker().page(packed, codec, "page")
