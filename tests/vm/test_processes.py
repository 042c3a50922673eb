# SPDX-License-Identifier: GPL-2.0-or-later
"""Builder and loader as systemd runs them: what they may do, and what is left when they or the service die."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lab import circle, image
from lab.qemu import Machine

CAP_SYS_BOOT = 1 << 22
# Tenths of what `systemd-analyze security` may find on a running system.
LIMITS = {
    "kdumpd": 15,
    "kdumpd-load@x": 20,
    "kdumpd-load-keys@x": 20,
    "kdumpd-load-tool@x": 20,
    "kdumpd-build@x": 30,
    "kdumpd-test-crash": 20,
    "kdumpd-test-target": 30,
}
# kernel_alignment of the x86 setup header: no place in the reservation is aligned like that, which the kernel finds out
# only after it has dropped the old capture kernel.
SPOIL = """
import os, sys
data = bytearray(open(sys.argv[1], "rb").read())
data[0x230:0x234] = (1 << 30).to_bytes(4, "little")
open(sys.argv[1] + ".new", "wb").write(data)
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


def _loaded(guest: Machine) -> dict[str, Any]:
    """The record of what is loaded, which the kernel has to agree with."""
    assert guest.run(["cat", "/sys/kernel/kexec_crash_loaded"]).ok().strip() == "1"
    record: dict[str, Any] = json.loads(guest.run(["cat", "/run/kdumpd/loaded.json"]).ok())
    return record


def _kill(guest: Machine) -> None:
    """SIGKILL for the service, and a wait until systemd has started another one."""
    before = guest.run(["systemctl", "show", "-P", "MainPID", "kdumpd"]).ok()
    guest.run(["systemctl", "kill", "--kill-whom=main", "--signal=SIGKILL", "kdumpd"]).ok()
    _wait(
        lambda: (
            guest.run(["systemctl", "is-active", "kdumpd"]).out.strip() == "active"
            and guest.run(["systemctl", "show", "-P", "MainPID", "kdumpd"]).ok() != before
        ),
        "another kdumpd",
    )


def _wait(condition: Any, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.5)


def _builds(guest: Machine) -> int:
    said = guest.run(["journalctl", "-b", "-o", "cat", "--no-pager", "-u", "kdumpd-build@*"]).ok()
    return said.count("Starting kdumpd-build@")


def _crash(guest: Machine, scratch: Path) -> dict[str, Any]:
    """Crashes the machine, which ends with the capture; the manifest of the dump that has to be on its disk."""
    guest.run(["sync"]).ok()
    after = guest.console.mark()
    guest.crash()
    circle.wait_captured(guest, after)
    (manifest,) = circle.manifests(scratch).values()
    return manifest


def test_killed_while_building_then_a_load_that_fails_then_a_crash(made: image.Image, scratch: Path) -> None:
    """One build whatever happens to the service; and the pair that was loaded before captures the crash."""
    with circle.boot(made, scratch, comes_back=False) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        good = _loaded(guest)
        pid = guest.run(["systemctl", "show", "-P", "MainPID", "kdumpd"]).ok().strip()
        status = guest.run(["cat", f"/proc/{pid}/status"]).ok()
        (effective,) = [line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:")]
        assert not int(effective, 16) & CAP_SYS_BOOT, "the service itself may load"
        for unit, limit in LIMITS.items():
            guest.run(["systemd-analyze", "security", "--no-pager", f"--threshold={limit}", f"{unit}.service"]).ok()

        _kill(guest)
        circle.wait_armed(guest)
        assert _loaded(guest) == good, "a kill at rest led to another load"

        before = _builds(guest)
        guest.run(["python3", "-c", SPOIL, f"/boot/vmlinuz-{made.release('6.1')}"]).ok()
        _wait(lambda: _builds(guest) == before + 1, "the build that a changed kernel leads to")
        _kill(guest)
        circle.wait_said(guest, "the previous image is loaded again")
        circle.wait_said(guest, "do not fit into the memory reserved")
        assert circle.status(guest)["armed"] is True
        assert _loaded(guest)["image_id"] == good["image_id"]
        assert _loaded(guest)["kernel_sha256"] == good["kernel_sha256"]
        assert _builds(guest) == before + 1, "the build was begun again"
        manifest = _crash(guest, scratch)
    assert manifest["result"] == "complete"
    assert manifest["image_id"] == good["image_id"]


def test_loading_with_kexec_tools(made: image.Image, scratch: Path) -> None:
    with circle.boot(made, scratch, comes_back=False) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        guest.run(["mkdir", "-p", "/etc/kdump.conf.d"]).ok()
        guest.write("/etc/kdump.conf.d/load.conf", b"kexec_syscall kexec_load\n")
        # Without the program: said, and what is loaded stays.
        circle.wait_journal(guest, "exec-tools, which loads with kexec_load(2), is not installed")
        assert _loaded(guest)["syscall"] == "auto"
        guest.run(["ln", "-s", "/opt/lab/kexec", "/usr/sbin/kexec"]).ok()
        guest.run(["kdumpctl", "load"], timeout=180).ok()
        circle.wait_armed(guest)
        record = _loaded(guest)
        assert record["syscall"] == "kexec_load"
        manifest = _crash(guest, scratch)
    assert manifest["result"] == "complete"
    assert manifest["image_id"] == record["image_id"]
