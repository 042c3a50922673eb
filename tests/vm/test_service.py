# SPDX-License-Identifier: GPL-2.0-or-later
"""The service on a whole machine: what it sees, how soon, what it does about it, and what it costs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import circle, image
from lab.qemu import Machine

from kdumpd.dumpfile.reader import DiskdumpReader

KEXEC = "/usr/sbin/kexec"
LOADED = "/sys/kernel/kexec_crash_loaded"
# In a guest the daemon was measured at 31344 KiB; tests/service/test_idle.py holds it to 30 MiB.
LIMIT_KIB = 32 * 1024
QUIET_SECONDS = 40
DIMM_MIB = 256
# A process whose memory comes from the DIMM: its blocks are online as movable memory, which is used first.
HOG = "import os, time; kept = os.urandom(48 << 20); print(len(kept), flush=True); time.sleep(9999)"


def _until(guest: Machine, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
    """Waits for it; the seconds it took."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            said = guest.run(["kdumpctl", "status"]).out
            journal = guest.run(["journalctl", "-u", "kdumpd", "-n", "30", "--no-pager"]).out
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{said}\n{journal}")
        time.sleep(0.2)
    return time.monotonic() - begin


def _loaded(guest: Machine) -> bool:
    return guest.run(["cat", LOADED]).ok().strip() == "1"


def _codes(guest: Machine) -> set[str]:
    return {reason["code"] for reason in circle.status(guest)["reasons"]}


def _shell(guest: Machine, script: str, *words: str) -> str:
    return guest.run(["/bin/sh", "-c", script, "sh", *words]).ok().strip()


def _loads(guest: Machine) -> int:
    """How often the service told the journal that it loaded."""
    said = guest.run(["journalctl", "-u", "kdumpd", "--no-pager", "-o", "cat"]).ok()
    return said.count("Loaded the capture kernel")


def _cost(guest: Machine) -> None:
    """Resident memory, and wake-ups while nothing happens."""
    pid = _shell(guest, "systemctl show -p MainPID --value kdumpd")
    found = re.search(r"^VmRSS:\s*(\d+) kB", guest.run(["cat", f"/proc/{pid}/status"]).ok(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) < LIMIT_KIB
    count = "awk '/^voluntary/ { n += $2 } END { print n }' /proc/\"$1\"/task/*/status"
    quietest = 99
    for _ in range(3):  # the first window may hold the end of something
        before = int(_shell(guest, count, pid))
        time.sleep(QUIET_SECONDS)
        quietest = min(quietest, int(_shell(guest, count, pid)) - before)
        if quietest <= 2:
            break
    assert quietest <= 2, f"{quietest} wake-ups in {QUIET_SECONDS} s"


def _bad_configuration(guest: Machine) -> None:
    """Named with file and line within seconds, nobody having told the service; what was loaded stays."""
    good = guest.run(["cat", "/etc/kdump.conf"]).ok()
    guest.write("/etc/kdump.conf", b"# a comment\npath var/crash\n")
    took = _until(guest, lambda: "config-error" in _codes(guest), "the complaint", 20)
    assert took < 15
    assert "/etc/kdump.conf:2:" in circle.status(guest)["reasons"][0]["sentence"]
    assert circle.status(guest)["state"] == "loaded-stale"
    assert _loaded(guest)
    refused = guest.run(["kdumpctl", "reload"], timeout=120)
    assert refused.rc != 0
    assert "/etc/kdump.conf:2:" in refused.err
    guest.write("/etc/kdump.conf", good.encode())
    circle.wait_armed(guest)


def _unloaded_behind_its_back(guest: Machine) -> None:
    """Loaded again within seconds, although nothing in the kernel tells; or only reported, as kdump.conf says."""
    before = _loads(guest)
    guest.run([KEXEC, "-p", "-u"]).ok()
    assert _until(guest, lambda: _loads(guest) > before, "the load", 25) < 25
    assert _loaded(guest)
    circle.wait_journal(guest, "Somebody unloaded the capture kernel past kdumpd; it is loaded again")
    _shell(guest, "echo on_unload report >> /etc/kdump.conf")
    time.sleep(3)
    guest.run([KEXEC, "-p", "-u"]).ok()
    _until(guest, lambda: "unloaded-by-other" in _codes(guest), "the report", 25)
    time.sleep(3)
    assert not _loaded(guest)
    guest.run(["kdumpctl", "load"], timeout=180).ok()
    circle.wait_armed(guest)
    _shell(guest, "sed -i /on_unload/d /etc/kdump.conf")


def _killed(guest: Machine) -> None:
    """The same state without a build, without a load, and armed all the time."""
    loads, before = _loads(guest), circle.status(guest)
    pid = _shell(guest, "systemctl show -p MainPID --value kdumpd")
    guest.run(["systemctl", "kill", "-s", "KILL", "kdumpd"]).ok()
    assert _loaded(guest)
    _until(guest, lambda: _shell(guest, "systemctl show -p MainPID --value kdumpd") not in ("0", pid), "a new process")
    circle.wait_armed(guest)
    after = circle.status(guest)
    for name in ("state", "image_id", "loaded_since_usec"):
        assert after[name] == before[name]
    assert _loads(guest) == loads


def _plug_memory(guest: Machine) -> tuple[int, int]:
    """A DIMM: one reload, whose capture kernel knows of it; its first and last page."""
    ranges = "sed -n 's/ : System RAM.*//p' /proc/iomem"
    before, loads = _shell(guest, ranges), _loads(guest)
    guest.plug_memory("dimm1", DIMM_MIB)
    _until(guest, lambda: _shell(guest, ranges) != before, "the DIMM")
    _shell(
        guest,
        "for f in /sys/devices/system/memory/memory*/state; do echo online_movable > $f || true; done 2>/dev/null",
    )
    _until(guest, lambda: _loads(guest) > loads, "the reload", 30)
    circle.wait_armed(guest)
    time.sleep(6)
    assert (
        _loads(guest) == loads + 1
    )  # two blocks of memory, added and then online: one reload, or none for what came after
    (new,) = set(_shell(guest, ranges).split()) - set(before.split())
    start, last = (int(word, 16) for word in new.split("-"))
    assert last + 1 - start == DIMM_MIB << 20
    record = json.loads(guest.run(["cat", "/run/kdumpd/loaded.json"]).ok())
    assert f"{start:x}-{last:x}" in record["memory"]
    return start >> 12, last >> 12


@pytest.mark.matrix
@pytest.mark.parametrize("series", ["6.1"])
def test_it_sees_mends_and_survives(made: image.Image, scratch: Path, series: str) -> None:
    """One machine for all of it, since a machine costs minutes."""
    with circle.boot(made, scratch, series=series, memory_slots=2) as guest:
        guest.wait_ready()
        _shell(guest, "cp /opt/lab/kexec /usr/sbin/kexec; echo 'core_collector makedumpfile -d 23' >> /etc/kdump.conf")
        # The configuration changed and nobody told the service: an image is built and loaded.
        circle.wait_journal(guest, "Built the capture image", 240)
        circle.wait_armed(guest)
        _bad_configuration(guest)
        _unloaded_behind_its_back(guest)
        _killed(guest)
        _cost(guest)
        first, last = _plug_memory(guest)
        guest.run(["systemd-run", "--unit=hog", "python3", "-c", HOG]).ok()
        _until(guest, lambda: str(48 << 20) in guest.run(["journalctl", "-u", "hog", "-o", "cat"]).out, "the hog")
        guest.run(["sync"]).ok()
        after = guest.console.mark()
        guest.crash()
        circle.wait_back(guest, after)
        (name,) = circle.crashes(guest)
        manifest = json.loads(guest.run(["cat", f"{circle.CRASH_DIR}/{name}/manifest.json"]).ok())
        assert manifest["result"] == "complete"
        guest.power_off()
    circle.copy_out(scratch / "disk.qcow2", f"{circle.CRASH_DIR}/{name}", scratch / "crash")
    with DiskdumpReader(scratch / "crash" / name / "vmcore") as dump:
        pages = dump.dumped(first // 8, (last + 1 - first) // 8)
        count = sum(int(byte).bit_count() for byte in pages)
    assert count > (32 << 20) // 4096, f"the dump holds {count} pages of the DIMM"
