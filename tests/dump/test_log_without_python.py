# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor's last resort: a shell takes the crashed kernel's log out of the memory, of each kernel there is."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.vmcore import Vmcore

INIT = Path(__file__).resolve().parents[2] / "initramfs/busybox/init"
PANIC = "Kernel panic - not syncing: sysrq triggered crash"


def raw_log(core: Path, folder: Path) -> str:
    """What raw_log of init says, under busybox's shell."""
    text, found, _ = INIT.read_text().partition("\ntrap '' ")
    assert found
    (folder / "script").write_text(
        text.replace("/proc/vmcore", str(core)).replace("/run/kdumpd", str(folder)) + "\nraw_log\n"
    )
    done = subprocess.run(["/bin/busybox", "sh", folder / "script"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode("ascii")


def test_the_log_of_each_kernel(core: Vmcore, tmp_path: Path) -> None:
    said = raw_log(core.path, tmp_path)
    for words in ("Linux version", core.marker, PANIC):
        assert words in said, f"{words!r} is not in {len(said)} characters: {said[:300]!r}"


def test_what_is_no_core_is_refused(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\x7fELF\x01" + bytes(200), bytes(5000))):
        core = tmp_path / f"core-{number}"
        core.write_bytes(data)
        try:
            raw_log(core, tmp_path)
        except AssertionError:
            continue
        raise AssertionError(f"{data[:8]!r} was taken for a core")
