# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl build: what it refuses before it builds. A whole build and its crash are in tests/vm/test_board.py."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from kdumpd.cli.__main__ import main
from kdumpd.cli.parser import DISKS
from kdumpd.image import board

OPTIONS = ("BLK_DEV_INITRD", "DEVTMPFS", "PROC_VMCORE", "CRASH_DUMP", "KEXEC", "PROC_KCORE")
CONFIG = "".join(f"CONFIG_{option}=y\n" for option in OPTIONS).encode()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command line for a board, in an empty sysroot."""
    head = struct.pack("<IIQQQ", 0x91005A4D, 0, 0, 40 << 20, 0xA) + bytes(24) + b"ARM\x64" + bytes(4100)
    carried = b"IKCFG_ST" + gzip.compress(CONFIG) + b"IKCFG_ED"
    (tmp_path / "Image").write_bytes(head + b"Linux version 6.6.30 (x) \0" + carried)
    structure = struct.pack(">IIII", 1, 0, 2, 9)
    header = struct.pack(">10I", 0xD00DFEED, 72, 56, 72, 40, 17, 16, 0, 0, 16)
    (tmp_path / "x.dtb").write_bytes(header + bytes(16) + structure)
    (tmp_path / "root").mkdir()
    return [
        "build", "--kernel", str(tmp_path / "Image"), "--dtb", str(tmp_path / "x.dtb"), "--out", str(tmp_path / "out"),
        "--root", str(tmp_path / "root"), "--target", "ext4 LABEL=X",
    ]  # fmt: skip


def _without(words: list[str], option: str) -> list[str]:
    at = words.index(option)
    return words[:at] + words[at + 2 :]


def _refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(words)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return status, said


def test_what_is_missing_is_named(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = _refused(words, capsys)
    assert status == 1
    assert f"there is no /usr/bin/python3 in {tmp_path}/root" in said
    assert not (tmp_path / "out").exists()


def test_a_board_has_a_device_tree(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = _refused(_without(words, "--dtb"), capsys)
    assert (status, said.strip()) == (
        2, "kdumpctl: a board for aarch64 has a device tree: name its file with --dtb",
    )  # fmt: skip
    (tmp_path / "x.dtb").write_text("no tree, but long enough to be one, if it only began like one")
    assert "x.dtb is not a device tree" in _refused(words, capsys)[1]
    (tmp_path / "x.dtb").unlink()
    assert "x.dtb cannot be read: No such file" in _refused(words, capsys)[1]


@pytest.mark.parametrize(
    ("target", "words_said"),
    [
        (None, "names no target"),
        ("ext4", "--target: "),
        ("path /x", "'path /x' names no target"),
        ("nfs server:/export", "to a filesystem on a disk, not to: nfs server:/export"),
    ],
)
def test_a_target_is_a_named_filesystem(
    words: list[str], target: str | None, words_said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = _without(words, "--target") + ([] if target is None else ["--target", target])
    status, said = _refused(changed, capsys)
    assert status != 0 and words_said in said


def test_a_config_is_that_of_the_board(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/kdump.conf").write_text("ext4 LABEL=A\nfinal_action dance\n")
    assert "kdump.conf:2" in _refused(_without(words, "--target"), capsys)[1]
    (tmp_path / "k.conf").write_text("ext4 /dev/sda1\n")
    said = _refused([*_without(words, "--target"), "--config", str(tmp_path / "k.conf")], capsys)[1]
    assert "/dev/sda1 may be another disk after a crash" in said
    assert "cannot be read" in _refused([*words, "--config", str(tmp_path / "missing")], capsys)[1]


def test_wrong_machines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a kernel for aarch64, this machine is x86_64" in _refused([*words, "--arch", "amd64"], capsys)[1]


def test_only_builders_there_are(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--builder", "buzybox"])
    assert caught.value.code == 2
    assert "invalid choice: 'buzybox'" in capsys.readouterr().err


def test_the_parser_knows_the_disks() -> None:
    assert set(DISKS) == set(board.DISKS)
