# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job on whole machines: armed, crashed, captured, rebooted; and the dump is what it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import circle, image, proof, reference, vmcore
from lab.qemu import Machine


def _crash(guest: Machine, scratch: Path) -> tuple[str, str]:
    """Crashes an armed machine, keeps its raw memory; the marker and the name of the crash folder."""
    marker = circle.mark_log(guest)
    after = guest.console.mark()
    guest.crash()
    reference.save_raw_vmcore(guest, scratch / "memory", scratch / "raw.vmcore", after=after, timeout=120)
    circle.wait_back(guest, after)
    (name,) = circle.crashes(guest)
    return marker, name


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_a_crash_is_captured(made: image.Image, scratch: Path, series: str) -> None:
    """6.1 as after the installation; 6.12 takes most of its image from that of 6.1, which was armed on this disk."""
    fresh = series == "6.1"
    with circle.boot(made, scratch, fresh=fresh, series=series, memory_file=scratch / "memory") as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        assert guest.run(["cat", "/sys/kernel/kexec_crash_loaded"]).ok().strip() == "1"
        marker, name = _crash(guest, scratch)
        listed = json.loads(guest.run(["kdumpctl", "list", "--json"]).ok())
        assert name in json.dumps(listed)
        info = guest.run(["kdumpctl", "info"]).ok()
        assert proof.PANIC in info
        assert "complete" in info
        circle.wait_armed(guest)
        assert circle.status(guest)["state"] == "proven", guest.run(["kdumpctl", "status"]).out
        guest.power_off()
    circle.copy_out(scratch / "disk.qcow2", f"{circle.CRASH_DIR}/{name}", scratch / "crash")
    folder = scratch / "crash" / name
    proof.complete(folder)
    proof.marker(folder, marker)
    proof.page_set(folder, scratch / "raw.vmcore")
    proof.accepted(folder)
    proof.opens(folder, vmcore.debug_symbols(made.release(series)), marker)
