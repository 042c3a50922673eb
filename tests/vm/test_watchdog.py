# SPDX-License-Identifier: GPL-2.0-or-later
"""A watchdog that was armed before the crash goes on counting, and the capture takes longer than it waits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lab import proof, tiny
from test_capture_faults import script


@pytest.mark.matrix
@pytest.mark.parametrize("known", [True, False])
def test_an_armed_watchdog_is_petted(known: bool, scratch: Path) -> None:
    """QEMU's i6300esb switches a machine off that does not pet it: at first after 40 s, after 30 s once the capture
    kernel's driver has set it up again. And it does so where the image was built as if there were none."""
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)

    def prepare(root: Path) -> None:
        script("sleep 45")(root)
        if not known:
            shutil.rmtree(root / "sys/class/watchdog")

    outcome = tiny.crash(
        f"ext4 UUID={uuid}\npath /crash\n",
        scratch,
        kernel="generic",
        disks=[tiny.Disk(path=disk)],
        modules=["i6300esb"],
        words=["-device", "i6300esb", "-action", "watchdog=poweroff"],
        setup="await /sys/class/watchdog/watchdog0\nwatchdog -T 40 -t 5 /dev/watchdog0\n"
        "until grep -q ^active /sys/class/watchdog/watchdog0/state; do sleep 0.1; done",
        prepare=prepare,
    )
    if not known:
        assert "petting" not in outcome.capture
        assert "SAVED" not in outcome.capture
        assert "Restarting system" not in outcome.capture
        return
    assert "petting watchdog0 every 8 s" in outcome.capture
    assert "SAVED" in outcome.capture, outcome.capture[-2000:]
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    proof.complete(folder)
