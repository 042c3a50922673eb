# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware of the drivers in an image."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import zstandard

from kdumpd.errors import BuildError
from kdumpd.image.contents import Tree, add_modules
from kdumpd.image.firmware import find_firmware, firmware_names, read_firmware
from kdumpd.image.kmodules import ModuleIndex

MODULE = b"\x7fELF\0license=GPL\0firmware=a/one.bin\0firmware=a/one.bin\0firmware=two.fw\0notfirmware=x\0depends=\0"


def test_names_are_taken_from_the_module() -> None:
    assert firmware_names(MODULE) == ("a/one.bin", "two.fw")


@pytest.mark.parametrize("name", [b"/etc/shadow", b"../../etc/shadow", b"a/../../b"])
def test_names_that_lead_elsewhere_are_left_out(name: bytes) -> None:
    assert firmware_names(b"\x7fELF\0firmware=" + name + b"\0") == ()


def test_what_is_there_is_unpacked_and_what_is_not_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "lib/firmware"
    (folder / "a").mkdir(parents=True)
    (folder / "a/one.bin.xz").write_bytes(lzma.compress(b"firmware one"))
    (tmp_path / "modules/kernel").mkdir(parents=True)
    (tmp_path / "modules/kernel/card.ko").write_bytes(MODULE)
    index = ModuleIndex(
        folder=tmp_path / "modules",
        depends={},
        builtin=frozenset(),
        aliases=(),
        builtin_aliases=(),
        softdeps={},
    )
    tree = Tree()
    add_modules(tree, index, "6.1.0", ["kernel/card.ko"], tmp_path)
    assert tree.entries["kdumpd/firmware/a/one.bin"].content == b"firmware one"
    assert tree.notes == ["the driver card names firmware that is not on this machine: two.fw"]


def test_files_of_a_release_and_updates_come_first(tmp_path: Path) -> None:
    folder = tmp_path / "lib/firmware"
    for place in ("", "6.1.0", "updates"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / "f").write_text(place)
    assert find_firmware("f", "6.1.0", tmp_path) == folder / "updates/f"
    (folder / "updates/f").unlink()
    assert find_firmware("f", "6.1.0", tmp_path) == folder / "6.1.0/f"
    assert find_firmware("f", "6.2.0", tmp_path) == folder / "f"
    assert find_firmware("g", "6.1.0", tmp_path) is None


def test_packed_files_are_unpacked_or_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "f.zst"
    path.write_bytes(zstandard.compress(b"data"))
    assert read_firmware(path) == b"data"
    for name in ("g.zst", "g.xz"):
        (tmp_path / name).write_bytes(b"rubbish")
        with pytest.raises(BuildError, match="damaged"):
            read_firmware(tmp_path / name)
