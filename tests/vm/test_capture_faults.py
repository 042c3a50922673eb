# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong in the capture kernel itself: each time the machine is back in time, no name lies, and it is told.

The faults come from where the administrator's own programs come from: scripts in /etc/kdump/pre.d that stay behind in
the background.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab import listing, proof, tiny

DEADLINE_S = 150
# What may be added to the deadline, and what QEMU takes to boot the capture kernel and to end under emulation.
SPARE_S = 30 + 45
CONFIG = f"path /crash\ndeadline_total {DEADLINE_S}\ndeadline_stall 30\n"


def script(text: str) -> Callable[[Path], None]:
    """Puts a program into pre.d of the machine."""
    return tiny.programs({"pre.d/fault": text})


# Signals to the collector, one after the other, each to another process and once it has begun with a target.
SIGNALS = """
(
    last=
    for signal in {signals}; do
        while :; do
            sleep 0.2
            pid=$(busybox pidof python3) || continue
            [ "$pid" != "$last" ] && [ -e /run/kdumpd/answers/target ] && break
        done
        sleep 1
        kill -"$signal" "$pid"
        last=$pid
    done
) </dev/null >/dev/null 2>&1 &
"""


class Disks:
    """ext4 filesystems of a guest, the first one labelled "a", and what is on them afterwards."""

    def __init__(self, scratch: Path, *sizes_mib: int) -> None:
        self.scratch = scratch
        self.paths = {label: scratch / f"{label}.raw" for label, _ in zip("abc", sizes_mib, strict=False)}
        for (label, path), mib in zip(self.paths.items(), sizes_mib, strict=True):
            tiny.ext4(path, mib=mib, label=label)

    @property
    def disks(self) -> list[tiny.Disk]:
        return [tiny.Disk(path=path) for path in self.paths.values()]

    @property
    def config(self) -> str:
        return "".join(f"ext4 LABEL={label}\n" for label in self.paths) + CONFIG

    def listed(self, label: str) -> list[Mapping[str, Any]]:
        """The crashes on a disk as `kdumpctl list` shows them, oldest first."""
        root = self.scratch / f"root-{label}"
        if not root.exists():
            listing.take(self.paths[label], "/crash", root)
        return listing.listed(root)

    def folder(self, label: str, name: str) -> Path:
        return self.scratch / f"root-{label}/crash" / name


def _in_time(outcome: tiny.Outcome) -> None:
    assert outcome.captured_sec < DEADLINE_S + SPARE_S, outcome.capture[-3000:]
    assert "reboot: Restarting system" in outcome.capture


def test_killed_then_frozen_then_the_next_target(scratch: Path) -> None:
    """SIGKILL: the same target again. No sign of life: the next one, which gets the dump."""
    disks = Disks(scratch, 128, 128)
    fault = script(SIGNALS.format(signals="KILL STOP"))
    outcome = tiny.crash(disks.config, scratch, disks=disks.disks, prepare=fault)
    _in_time(outcome)
    assert "the collector was killed (status 137)" in outcome.capture
    assert "the collector was silent for 30 s" in outcome.capture
    assert [crash["result"] for crash in disks.listed("a")] == ["interrupted", "interrupted"]
    (crash,) = disks.listed("b")
    assert crash["result"] == "complete"
    folder = disks.folder("b", crash["name"])
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    assert "kdumpd: FAILED: the collector was silent" in (folder / "kexec-dmesg.log").read_text()


def test_a_hang_on_the_only_target_ends_in_a_shell_that_nobody_uses(scratch: Path) -> None:
    disks = Disks(scratch, 128)
    config = disks.config + "failure_action shell\nshell_timeout 5\n"
    tell = 'echo "emergency $1 $KDUMP_RESULT: $KDUMP_REASON"'
    prepare = tiny.programs({"pre.d/fault": SIGNALS.format(signals="STOP"), "emergency.d/tell": tell})
    outcome = tiny.crash(config, scratch, disks=disks.disks, prepare=prepare)
    _in_time(outcome)
    assert "emergency 137 failed: the collector was silent for 30 s" in outcome.capture
    assert "a shell, for 5 s; 'touch /run/kdumpd/stay' keeps it" in outcome.capture
    assert "failure action: reboot" in outcome.capture
    found = {str(crash["result"]): str(crash["problem"]) for crash in disks.listed("a")}
    assert sorted(found) == ["failed", "interrupted"]
    assert "the collector was silent for 30 s" in found["failed"]


def test_without_python_a_note_is_left(scratch: Path) -> None:
    """On an LVM volume, which the supervisor has to bring up by itself."""
    disk = scratch / "a.raw"
    with disk.open("wb") as file:
        file.truncate(96 << 20)
    setup = f"""{tiny.LVM}
lvm vgcreate -q lab $(disk disk0) && lvm lvcreate -q -Wn -L 64m -n dumps lab || return 1
/sbin/mke2fs -q -t ext4 /dev/mapper/lab-dumps && mkdir -p /var /etc && : >/etc/mtab || return 1
mount -t ext4 /dev/mapper/lab-dumps /var || return 1
"""
    fault = script("for python in /usr/bin/python3.*; do rm -f $python || mount -o bind /dev/null $python; done")
    outcome = tiny.crash(
        CONFIG.replace("/crash", "/var/crash"), scratch, disks=[tiny.Disk(path=disk)], setup=setup, prepare=fault,
        modules=["dm_mod", "crc32c_generic", "ext4"], tools=["/usr/sbin/lvm", "/usr/sbin/mke2fs"],
    )  # fmt: skip
    _in_time(outcome)
    # The volume is the first one of its group, behind 1 MiB of LVM's own.
    found = listing.take(Path(f"{disk}?offset={1 << 20}"), "/crash", scratch / "root")
    (crash,) = listing.listed(scratch / "root")
    assert crash["result"] == "failed"
    assert "python3 could not be started" in crash["problem"]
    assert "left a note" in outcome.capture
    folder = found / crash["name"]
    assert "kdumpd: starting the collector" in (folder / "kexec-dmesg.log").read_text()
    assert outcome.marker in (folder / "vmcore-dmesg.raw").read_text()


def test_memory_exhausted(scratch: Path) -> None:
    """All but 12 MiB of the memory is gone before the collector starts."""
    disks = Disks(scratch, 64)
    fault = script("""
    mount -o remount,size=100% /tmp
    n=0
    while [ $n -lt 400 ]; do
        while read -r key value _; do [ "$key" = MemAvailable: ] && break; done </proc/meminfo
        [ "$value" -gt 12288 ] || break
        busybox dd if=/dev/zero of=/tmp/$n bs=1M count=2 2>/dev/null
        n=$((n + 1))
    done
    """)
    outcome = tiny.crash(disks.config, scratch, disks=disks.disks, prepare=fault)
    _in_time(outcome)
    found = disks.listed("a")
    assert found, outcome.capture[-3000:]
    assert all(crash["result"] != "complete" for crash in found)
    assert any("memory" in (crash["problem"] or "") for crash in found), found


def test_two_crashes_in_the_same_second_of_1970(scratch: Path) -> None:
    """The clock of both kernels is off by half a century: two folders, each with a whole dump."""
    disks = Disks(scratch, 128)
    for name in ("first", "second"):
        outcome = tiny.crash(
            disks.config,
            scratch,
            disks=disks.disks,
            faults="date -s 1970.01.01-00:05:00",
            words=["-rtc", "base=1970-01-01T00:00:00"],
            name=name,
        )
        _in_time(outcome)
    found = disks.listed("a")
    assert [crash["result"] for crash in found] == ["complete", "complete"]
    names = [str(crash["name"]) for crash in found]
    assert all(re.fullmatch(r"vm-19700101T00050[0-9]Z(-2)?", name) for name in names), names
    for name in names:
        proof.complete(disks.folder("a", name))


def test_missing_then_full_then_the_third_target(scratch: Path) -> None:
    """The first disk loses its filesystem, the second is too small: the log is early on the second, the dump on the
    third, and each one tells what happened."""
    disks = Disks(scratch, 64, 8, 128)
    outcome = tiny.crash(
        disks.config, scratch, disks=disks.disks, faults='dd if=/dev/zero of="$(disk disk0)" bs=1M count=8 conv=fsync'
    )
    _in_time(outcome)
    said = " ".join(outcome.capture.split())
    assert "the device LABEL=a did not appear within 30 s" in said
    *_, late = disks.listed("b")
    assert late["result"] in ("incomplete", "log-only")
    early = disks.folder("b", late["name"].removesuffix("-2"))
    if late["result"] == "incomplete":  # what went ahead counts with it
        assert [Path(path).name for path in late["also"]] == [early.name]
    told = json.loads((early / "manifest.json").read_text())
    assert told["result"] == "log-only"
    assert "had not answered" in told["reason"]
    assert outcome.marker in (early / "vmcore-dmesg.txt").read_text()
    # On a machine that is emulated; it is begun after 6 s, and the first disk was waited for for 30 s.
    assert told["finished_usec"] - told["started_usec"] < 20_000_000
    *others, crash = disks.listed("c")  # it may have got the log, too, where the second one took its time
    assert [other["result"] for other in others] in ([], ["log-only"])
    assert crash["result"] == "complete"
    notes = json.loads((disks.folder("c", crash["name"]) / "manifest.json").read_text())["notes"]
    assert any("LABEL=a" in note for note in notes)
    assert any("LABEL=b" in note for note in notes)
    proof.complete(disks.folder("c", crash["name"]))
