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
LIMIT_KIB = 30 * 1024
QUIET_SECONDS = 40
DIMM_MIB = 256
HELD_MIB = 48
# Kernel memory, which no filter leaves out: full pipes. It comes from the DIMM, which is all that such a small machine
# has above 4 GiB, where an allocation looks first (include/linux/gfp.h, gfp_zone).
HOG = f"""
import fcntl, os, time
for _ in range({HELD_MIB}):
    end = os.pipe()[1]
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(end, os.urandom(1 << 20))
print("held", flush=True)
time.sleep(9999)
"""
# The keys of root, by add_key(2) and keyctl(2). Only test_luks.py's kernel does more with them.
KEYS = """
import ctypes, os, sys
from kdumpd.config import keyring
libc = ctypes.CDLL(None, use_errno=True)
add = {"x86_64": 248}.get(os.uname().machine, 217)
name = keyring.description("kdumpd-test-%d" % os.getpid())
assert not keyring.has_logon_key(name)
key = libc.syscall(add, b"logon", name.encode(), b"canary" * 4, 24, -4)
assert key > 0, ctypes.get_errno()
try:
    assert keyring.has_logon_key(name)
    assert not keyring.has_logon_key(name + "x")
    keyring.use_root_keys()
    assert keyring.has_logon_key(name)
    text = open("/proc/keys").read()
finally:
    keyring._keyctl(9, key, -4)  # unlink
assert not keyring.has_logon_key(name)
from kdumpd.host.crypt_keys import parse_keys
assert name in parse_keys(text), text
"""


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


def _record(guest: Machine) -> dict[str, str]:
    """What the service notes of the load that the kernel holds."""
    record: dict[str, str] = json.loads(guest.run(["cat", "/run/kdumpd/loaded.json"]).ok())
    return record


def _codes(guest: Machine) -> set[str]:
    return {reason["code"] for reason in circle.status(guest)["reasons"]}


def _shell(guest: Machine, script: str, *words: str) -> str:
    return guest.run(["/bin/sh", "-c", script, "sh", *words]).ok().strip()


def _loads(guest: Machine) -> int:
    """How often the service told the journal that it loaded."""
    said = guest.run(["journalctl", "-u", "kdumpd", "--no-pager", "-o", "cat"]).ok()
    return said.count("Loaded the capture kernel")


def _pid(guest: Machine) -> str:
    return _shell(guest, "systemctl show -p MainPID --value kdumpd")


def _wakeups(guest: Machine) -> None:
    """Of all its threads, while nothing happens."""
    pid = _pid(guest)
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
    before = _record(guest)
    guest.write("/etc/kdump.conf.d/bad.conf", b"# a comment\npath var/crash\n")
    _until(guest, lambda: "config-error" in _codes(guest), "the complaint")
    found = circle.status(guest)
    assert "/etc/kdump.conf.d/bad.conf:2:" in found["reasons"][0]["sentence"]
    assert found["state"] == "loaded-stale"
    assert _record(guest) == before
    assert _loaded(guest)
    refused = guest.run(["kdumpctl", "reload"], timeout=120)
    assert refused.rc != 0
    assert "/etc/kdump.conf.d/bad.conf:2:" in refused.err


def _good_configuration(guest: Machine, words: str) -> None:
    """Mended, and with something more for the capture kernel: loaded anew, nothing built."""
    image_id = _record(guest)["image_id"]
    guest.write("/etc/kdump.conf.d/bad.conf", f"commandline_append {words}\n".encode())
    _until(guest, lambda: words in _record(guest)["cmdline"].split(), "the load with another command line")
    circle.wait_armed(guest)
    assert _record(guest)["image_id"] == image_id


def _unloaded_behind_its_back(guest: Machine) -> None:
    """Loaded again within seconds, although nothing in the kernel tells."""
    before = _loads(guest)
    guest.run([KEXEC, "-p", "-u"]).ok()
    # It is seen when kexec ends; a look each 30 s would be the net below.
    _until(guest, lambda: _loads(guest) > before, "the load")
    assert _loaded(guest)
    circle.wait_journal(guest, "Somebody unloaded the capture kernel past kdumpd; it is loaded again")


def _unloaded_and_reported(guest: Machine) -> None:
    """As kdump.conf says: it stays unloaded, and everybody may know."""
    _shell(guest, "echo on_unload report >> /etc/kdump.conf")
    time.sleep(3)
    guest.run([KEXEC, "-p", "-u"]).ok()
    _until(guest, lambda: "unloaded-by-other" in _codes(guest), "the report")
    time.sleep(3)
    assert not _loaded(guest)
    guest.run(["kdumpctl", "load"], timeout=180).ok()
    circle.wait_armed(guest)


def _killed(guest: Machine) -> None:
    """The same state without a build, without a load, and armed all the time."""
    loads, before, pid = _loads(guest), circle.status(guest), _pid(guest)
    guest.run(["systemctl", "kill", "-s", "KILL", "kdumpd"]).ok()
    assert _loaded(guest)
    _until(guest, lambda: _pid(guest) not in ("0", pid), "a new process")
    circle.wait_armed(guest)
    after = circle.status(guest)
    for name in ("state", "image_id", "loaded_since_usec"):
        assert after[name] == before[name]
    assert _loads(guest) == loads


def _stopped_and_started(guest: Machine) -> None:
    """Armed all the time, and nothing is loaded for it."""
    loads = _loads(guest)
    guest.run(["systemctl", "stop", "kdumpd"]).ok()
    assert _loaded(guest)
    guest.run(["systemctl", "start", "kdumpd"]).ok()
    circle.wait_armed(guest)
    assert _loads(guest) == loads


def _test_crash(guest: Machine) -> str:
    """`kdumpctl test`, which the service carries out: after the boot it knows that the dump is the one of this test."""
    guest.run(["sync"]).ok()
    after = guest.console.mark()
    guest.trigger(["kdumpctl", "test", "--force"])
    circle.wait_back(guest, after)
    assert re.search(r"Command line:.* lab\.word=7", guest.console.text[after:])
    (name,) = circle.crashes(guest)
    folder = f"{circle.CRASH_DIR}/{name}"
    assert json.loads(guest.run(["cat", f"{folder}/manifest.json"]).ok())["result"] == "complete"
    _until(guest, lambda: bool(circle.status(guest)["last_test"]), "what became of the test")
    test = circle.status(guest)["last_test"]
    assert (test["outcome"], test["crash"]) == ("complete", name)
    circle.wait_journal(guest, f"The crash on request, test {test['id']}, left a dump (complete): {folder}")
    said = guest.run(["cat", f"{folder}/vmcore-dmesg.txt"]).ok()
    assert f"kdumpd: crashing this machine on request, test {test['id']}" in said
    return name


def _plug_memory(guest: Machine) -> tuple[int, int]:
    """A DIMM: one reload, whose capture kernel knows of it; its first and last page."""
    ranges = "sed -n 's/ : System RAM.*//p' /proc/iomem"
    counted = "ls -d /sys/devices/system/memory/memory* | wc -l"
    before, loads, blocks = _shell(guest, ranges), _loads(guest), int(_shell(guest, counted))
    guest.plug_memory("dimm1", DIMM_MIB)
    # The range is there a moment before its blocks are (add_memory_resource, mm/memory_hotplug.c).
    _until(guest, lambda: int(_shell(guest, counted)) == blocks + DIMM_MIB // 128, "the DIMM")
    online = "for f in /sys/devices/system/memory/memory*/state; do echo online_kernel > $f || true; done 2>/dev/null"
    _shell(guest, online)
    _until(guest, lambda: _loads(guest) > loads, "the reload")
    circle.wait_armed(guest)
    (new,) = set(_shell(guest, ranges).split()) - set(before.split())
    start, last = (int(word, 16) for word in new.split("-"))
    assert last + 1 - start == DIMM_MIB << 20
    assert f"{start:x}-{last:x}" in _record(guest)["memory"]
    guest.run(["systemd-run", "--unit=hog", "python3", "-c", HOG]).ok()
    _until(guest, lambda: "held" in guest.run(["journalctl", "-u", "hog", "-o", "cat"]).out, "the pipes")
    # Two blocks of memory, added and then online: one reload, or none for what came after.
    assert _loads(guest) == loads + 1
    return start >> 12, last >> 12


def test_it_sees_mends_and_survives(made: image.Image, scratch: Path) -> None:
    """One machine for all of it, since a machine costs minutes; at last it crashes, as its administrator asks."""
    with circle.boot(made, scratch, memory_slots=2) as guest:
        guest.wait_ready()
        _shell(guest, "cp /opt/lab/kexec /usr/sbin/kexec; mkdir -p /etc/kdump.conf.d")
        circle.wait_armed(guest)
        guest.run(["python3", "-c", KEYS]).ok()
        _bad_configuration(guest)
        _good_configuration(guest, "lab.word=7")
        _unloaded_behind_its_back(guest)
        _killed(guest)
        first, last = _plug_memory(guest)
        circle.wait_small(guest, LIMIT_KIB)
        _stopped_and_started(guest)
        name = _test_crash(guest)
        guest.power_off()
    circle.copy_out(scratch / "disk.qcow2", f"{circle.CRASH_DIR}/{name}", scratch / "crash")
    with DiskdumpReader(scratch / "crash" / name / "vmcore") as dump:
        pages = dump.dumped(first // 8, (last + 1 - first) // 8)
        count = sum(int(byte).bit_count() for byte in pages)
    assert count >= (HELD_MIB << 20) // 4096, f"the dump holds {count} pages of the DIMM"


@pytest.mark.matrix
def test_it_rests_and_reports(made: image.Image, scratch: Path) -> None:
    with circle.boot(made, scratch) as guest:
        guest.wait_ready()
        _shell(guest, "cp /opt/lab/kexec /usr/sbin/kexec")
        circle.wait_armed(guest)
        _wakeups(guest)
        _unloaded_and_reported(guest)
