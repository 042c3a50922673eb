# SPDX-License-Identifier: GPL-2.0-or-later
"""A board without systemd: an image made on this host of its own files captures a crash to a USB stick.

Everything is Debian's for arm64: the kernel, which has no kexec_file_load(2), and the sysroot. Nothing of it runs on
the host but the sysroot's Python under QEMU's emulation of single programs, for the build.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from lab import board, pages, prepare, proof, tiny, tools
from lab.aptroot import run

_EM_AARCH64 = b"\xb7\0"
LOAD_TIMEOUT_S, CAPTURE_TIMEOUT_S, BACK_TIMEOUT_S = 240, 240, 180


def build(kernel: board.Kernel, scratch: Path) -> Path:
    """What `kdumpctl build` of this checkout makes for the board."""
    out = scratch / "out"
    words = [
        "/usr/bin/python3", "-m", "kdumpd.cli", "build", "--builder", "busybox",
        "--kernel", str(kernel.image), "--kernel-config", str(kernel.config), "--modules", str(kernel.modules),
        "--dtb", str(board.device_tree(scratch / "virt.dtb")), "--root", str(board.sysroot()), "--arch", "arm64",
        "--disk", "usb", "--target", f"ext4 LABEL={board.USB_LABEL}", "--hostname", "board", "--out", str(out),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(prepare.TOP)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return out


def of_the_board_alone(image: Path, folder: Path) -> None:
    """Every program in the image is for arm64, and all byte code is of one Python."""
    folder.mkdir()
    script = 'zstd -dc "$1" | (cd "$2" && cpio -idm --quiet --no-absolute-filenames)'
    run(["sh", "-ec", script, "sh", str(image), str(folder)], timeout=120)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    programs = [path for path in files if path.read_bytes()[:4] == b"\x7fELF"]
    foreign = [path for path in programs if path.read_bytes()[18:20] != _EM_AARCH64]
    assert len(programs) > 20 and not foreign, foreign
    magics = {path.read_bytes()[:4] for path in files if path.suffix == ".pyc"}
    assert len(magics) == 1, magics


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> board.Kernel:
    return board.kernel(*request.param)


@pytest.mark.parametrize(
    "kernel",
    [
        (board.SUITE, "linux-image-arm64"),
        pytest.param(("bookworm", "linux-image-arm64"), marks=pytest.mark.matrix),
        pytest.param((board.SUITE, board.LARGE_PAGES), marks=pytest.mark.matrix),
    ],
    ids=" ".join, indirect=True,
)  # fmt: skip
def test_a_board_captures_to_a_usb_stick(kernel: board.Kernel, scratch: Path) -> None:
    """Debian 13's kernel, and by hand 12's, for which kexec-tools arm a header that no capture kernel can read, and
    the one with pages of 16 KiB."""
    marker = f"kdumpd-marker-{os.urandom(8).hex()}"
    out = build(kernel, scratch)
    of_the_board_alone(out / "capture-initramfs", scratch / "unpacked")
    disk = board.root_disk(scratch, out, marker)
    stick = board.usb_disk(scratch / "stick.raw")
    with board.machine(kernel, disk, stick, scratch) as machine:
        said = machine.console.wait_for(r"^board: (?:loaded|FAILED.*)", LOAD_TIMEOUT_S)
        assert said[0].strip() == "board: loaded"
        said = machine.console.wait_for(r"\[kdumpd\] .*?(?:SAVED|FAILED).*\n", CAPTURE_TIMEOUT_S)
        assert "SAVED /var/crash/board-" in said[0]
        machine.console.wait_for("^board: back", BACK_TIMEOUT_S)
        machine.wait_ended(60)
    folder = tiny.take_ext4(stick, "/var/crash", scratch / "crash")
    assert re.fullmatch(r"board-\d{8}T\d{6}Z", folder.name)
    proof.complete(folder)
    proof.marker(folder, marker)
    dump = folder / "vmcore"
    verified = run(
        ["/usr/bin/python3", "-m", "kdumpd.collector", "--verify", str(dump)], timeout=120,
        env={**os.environ, "PYTHONPATH": str(prepare.TOP)},
    )  # fmt: skip
    assert verified.strip() == f"{dump}: sound"
    # Pages all over the dump, as libkdumpfile and the laboratory's own reader find them.
    with pages.Dump(dump) as read:
        step = max(1, len(read.pfns) // 64)
        wanted = {
            str(read.pfns[at]): hashlib.sha256(read.page(at)).hexdigest() for at in range(0, len(read.pfns), step)
        }
    found = tools.read_with("kdumpfile", dump, *wanted)
    assert (found["release"], found["machine"]) == (kernel.release, "aarch64")
    assert len(wanted) >= 64 and found["pages"] == wanted
