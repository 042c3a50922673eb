# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures capture images side by side: kdumpd's three builders and Debian's kdump-tools, in the same guest.

Each contestant gets a Debian 12 of its own (tests/vm/lab/image.py) with the same kernel, disk, memory and
crashkernel=. First its image is built in the guest, and built again with nothing changed. Then, in turns, the guest
boots with that image, has the service arm it, loads it, crashes, captures to /var/crash on its root filesystem, and
restarts: that is where QEMU ends. A dump that is not there afterwards makes the run void. Seconds are of the host's
clock, and behind a slash of the processors that QEMU used: where the host is busy with other work the latter tell more.

kdump-tools run `makedumpfile -c -d 31`, which is their default; kdumpd its own default, which leaves out the same
pages and reads the dump back before it calls it complete.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import page
from lab import circle, image, prepare
from lab.aptroot import LabError, run
from lab.qemu import Machine, overlay

MEMORY_MIB = 2048
CRASHKERNEL = "192M"
_BUILD_TIMEOUT_S = 600.0
_HEAD = (
    "| image of | packed MB | built s | built again s | service started to armed s | load s | panic to restart s "
    "| of which to the collector s "
    "| most memory in use MiB | crashes |"
)
_TIMES = ("built", "again", "arm", "load", "restart", "collector")
# Tells the console the least memory that was available, each time that it is less than before, and all there is.
_SAMPLER = """#!/bin/sh
sample() {
    least=999999999
    while :; do
        while read -r key value _; do
            case $key in
            MemTotal:) all=$value ;;
            MemAvailable:)
                [ "$value" -ge "$least" ] || { least=$value; echo "lab: $all kB, $least available" >/dev/console; } ;;
            esac
        done </proc/meminfo
        sleep 0.5
    done
}
sample </dev/null >/dev/null 2>&1 &
"""
_SAMPLED = re.compile(r"lab: (\d+) kB, (\d+) available")
_LOADED = "/sys/kernel/kexec_crash_loaded"
_HOOK = "/etc/kdump/pre.d/sampler"
# The capture kernel of kdump-tools boots the guest's own systemd.
_DROP_IN = f"[Service]\nExecStartPre={_HOOK}\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """What is measured: a name; `packages` of Debian beside the guest's own; kdumpd's builder, if it is kdumpd."""

    name: str
    packages: tuple[str, ...] = ()
    builder: str = ""


CONTESTANTS = (
    Contestant(name="kdump-tools", packages=("kdump-tools", "kexec-tools", "makedumpfile")),
    Contestant(name="kdumpd, busybox", builder="busybox"),
    Contestant(name="kdumpd, dracut", packages=("dracut-core",), builder="dracut"),
    Contestant(name="kdumpd, initramfs-tools", builder="initramfs-tools"),
)


def main() -> int:
    """Runs what is asked for; 0 if all of it was captured."""
    parser = argparse.ArgumentParser(prog="tests/bench/peers", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="crashes of each contestant (3)")
    parser.add_argument("--only", metavar="WORD", action="append", help="contestants with this in their names alone")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="append what is measured there; the table has all that is in it"
    )
    parser.add_argument("--folder", type=Path, help="where the disks with the built images are kept for a next call")
    parser.add_argument("--no-sample", action="store_true", help="no crash more of each that only measures memory")
    parser.add_argument("--write", action="store_true", help=f"put the table into {page.PAGE.name}")
    options = parser.parse_args()
    chosen = [each for each in CONTESTANTS if not options.only or any(word in each.name for word in options.only)]
    with tempfile.TemporaryDirectory(prefix="kdumpd-peers-") as scratch:
        folder = options.folder or Path(scratch)
        results = options.results or Path(scratch) / "results"
        for each in chosen:
            if not _disk(each, folder).exists():
                _note(results, each, lambda each=each: _build(each, folder))
        for number in range(options.runs + (not options.no_sample)):
            for each in chosen:
                _note(results, each, lambda each=each, sampled=number == options.runs: _crash(each, folder, sampled))
        facts = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    table = _table(facts)
    print(table)
    if options.write:
        page.write("peers", f"{table}\n")
    return 1 if any("trouble" in fact for fact in facts) else 0


def _note(results: Path, each: Contestant, measured: Callable[[], Mapping[str, object]]) -> None:
    """Appends what `measured` finds, or why it finds nothing, to the results."""
    try:
        facts: Mapping[str, object] = measured()
    except (AssertionError, LabError) as error:
        facts = {"trouble": f"{error}".splitlines()[0]}
        print(f"{each.name}: {error}", file=sys.stderr, flush=True)
    line = json.dumps({"contestant": each.name, **facts})
    print(line, file=sys.stderr, flush=True)
    with results.open("a") as file:
        print(line, file=file)


def _image(each: Contestant) -> image.Image:
    made = image.with_debian(each.packages) if each.packages else image.base()
    return image.with_package(prepare.package(), made) if each.builder else made


def _disk(each: Contestant, folder: Path) -> Path:
    return folder / f"{each.name.replace(', ', '-')}.raw"


def _machine(disk: Path, log: Path, words: str = "") -> Machine:
    base = image.base()
    return Machine(
        kernel=base.kernel("6.1"),
        initrd=base.initrd("6.1"),
        disks=[(disk, "qcow2")],
        append=f"root=UUID={image.ROOT_UUID} ro console=ttyS0 crashkernel={CRASHKERNEL} {words}".rstrip(),
        memory_mib=MEMORY_MIB,
        cpus=2,
        log=log,
        restarts=False,
    )


def _build(each: Contestant, folder: Path) -> dict[str, float]:
    """Builds the image in the guest, twice, and keeps the disk."""
    made = _image(each)
    release = image.base().release("6.1")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        disk = overlay(made.disk, Path(scratch) / "disk.qcow2")
        # Neither arms itself while it is measured.
        words = "systemd.mask=kdump-tools.service systemd.mask=kdumpd.service"
        with _machine(disk, folder / f"{_disk(each, folder).stem}-build.log", words) as guest:
            guest.wait_ready()
            if each.builder:
                instance = release.replace("-", r"\x2d")  # systemd-escape(1)
                command = ["systemctl", "start", f"kdumpd-build@{instance}.service"]
                packed = f"/var/lib/kdumpd/{release}/initrd"
                guest.write("/etc/kdump.conf", f"builder {each.builder}\n".encode())
            else:
                command = ["/etc/kernel/postinst.d/kdump-tools", release]
                packed = f"/var/lib/kdump/initrd.img-{release}"
            first, again = _took(guest, command), _took(guest, command)
            size = int(guest.run(["stat", "-c", "%s", packed]).ok())
            facts = {**first.named("built"), **again.named("again"), "packed_bytes": size}
            if each.builder == "dracut":
                plain = ["dracut", "-q", "-H", "--force", "/root/plain", release]
                facts |= _took(guest, plain).named("plain")
                facts["plain_bytes"] = int(guest.run(["stat", "-c", "%s", "/root/plain"]).ok())
                guest.run(["rm", "/root/plain"]).ok()
            guest.power_off()
        kept = _disk(each, folder)
        run(["qemu-img", "convert", "-O", "raw", str(disk), str(kept) + ".new"], timeout=300)
        Path(str(kept) + ".new").rename(kept)
    return facts


def _install_sampler(guest: Machine) -> None:
    """A program that runs in the capture kernel of both: kdumpd's as a hook, kdump-tools' as a part of their unit."""
    drop_in = "/etc/systemd/system/kdump-tools-dump.service.d"
    guest.run(["mkdir", "-p", str(Path(_HOOK).parent), drop_in]).ok()
    guest.write(_HOOK, _SAMPLER.encode())
    guest.run(["chmod", "0755", _HOOK]).ok()
    guest.write(f"{drop_in}/sampler.conf", _DROP_IN.encode())


@dataclasses.dataclass(frozen=True, slots=True)
class _Taken:
    """Seconds by the clock, and of QEMU's processors."""

    wall_sec: float
    cpu_sec: float

    def named(self, name: str) -> dict[str, float]:
        return {f"{name}_sec": round(self.wall_sec, 2), f"{name}_cpu_sec": round(self.cpu_sec, 2)}


class _Watch:
    """A stop watch for a machine, also for one whose QEMU has ended meanwhile."""

    def __init__(self, guest: Machine) -> None:
        self._guest = guest
        self._wall = time.monotonic()
        self._cpu = guest.processor_sec()
        self._ended = _ended_sec()

    def read(self) -> _Taken:
        # A QEMU that has ended counts as one of the ended, with all of its time.
        cpu = self._guest.processor_sec() if self._guest.alive() else _ended_sec() - self._ended
        return _Taken(time.monotonic() - self._wall, cpu - self._cpu)


def _ended_sec() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _took(guest: Machine, command: Sequence[str], timeout: float = _BUILD_TIMEOUT_S) -> _Taken:
    watch = _Watch(guest)
    guest.run(command, timeout=timeout).ok()
    return watch.read()


def _arm(guest: Machine, each: Contestant) -> _Taken:
    """From the start of the service, with an image and nothing loaded, until the kernel says that it is armed."""
    service = "kdumpd.service" if each.builder else "kdump-tools.service"
    if each.builder:
        circle.wait_armed(guest)
    guest.run(["systemctl", "stop", service], timeout=180).ok()
    if each.builder:
        # Stopped, it leaves the machine armed.
        unload = "from kdumpd.host.kexec import FileLoader; import os; FileLoader(os.uname().machine).unload()"
        guest.run(["/usr/bin/python3", "-I", "-c", unload]).ok()
    assert guest.run(["cat", _LOADED]).ok().strip() == "0"
    # Not until the service has said that it is ready, which may be later.
    until = f"until read -r loaded <{_LOADED} && [ $loaded = 1 ]; do sleep 0.05; done"
    wait = f"systemctl start --no-block {service}; {until}"
    return _took(guest, ["sh", "-c", wait], timeout=circle.ARM_TIMEOUT_S)


def _crash(each: Contestant, folder: Path, sampled: bool) -> dict[str, float]:
    """Boots, loads, crashes, captures: the seconds, or, `sampled`, how much memory the capture kernel used."""
    facts: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        disk = overlay(_disk(each, folder), Path(scratch) / "disk.qcow2")
        log = folder / f"{_disk(each, folder).stem}-crash.log"
        with _machine(disk, log) as guest:
            guest.wait_ready()
            if sampled:
                _install_sampler(guest)
            tool = "kdumpctl" if each.builder else "kdump-config"
            arm = _arm(guest, each)
            guest.run([tool, "unload"], timeout=120).ok()
            load = _took(guest, [tool, "load"], timeout=circle.ARM_TIMEOUT_S)
            assert guest.run(["cat", _LOADED]).ok().strip() == "1"
            guest.run(["sync"]).ok()
            after = guest.console.mark()
            crashed = _Watch(guest)
            guest.crash()
            collecting = r"\[kdumpd\] starting the collector" if each.builder else "running makedumpfile"
            guest.console.wait_for(collecting, circle.CAPTURE_TIMEOUT_S, after=after)
            collector = crashed.read()
            guest.wait_ended(circle.CAPTURE_TIMEOUT_S)
            restart = crashed.read()
            said = guest.console.text[after:]
        if sampled:
            facts["used_kib"] = max(int(total) - int(available) for total, available in _SAMPLED.findall(said))
        else:
            facts |= arm.named("arm") | load.named("load") | collector.named("collector") | restart.named("restart")
        circle.copy_out(disk, circle.CRASH_DIR, Path(scratch) / "crash")
        dumps = [path for path in (Path(scratch) / "crash").rglob("*") if _is_dump(path, each)]
        assert len(dumps) == 1, f"{each.name} left {len(dumps)} dumps"
        facts["dump_bytes"] = dumps[0].stat().st_size
        if each.builder:
            manifest = json.loads((dumps[0].parent / "manifest.json").read_text())
            assert manifest["result"] == "complete", f"the manifest says {manifest['result']}: {manifest['reason']}"
            facts["peak_rss_bytes"] = manifest["peak_rss_bytes"]
            facts["lowest_available_bytes"] = manifest["lowest_available_bytes"]
    return facts


def _is_dump(path: Path, each: Contestant) -> bool:
    return path.name == "vmcore" if each.builder else re.fullmatch(r"dump\.\d+", path.name) is not None


def _table(facts: Sequence[Mapping[str, object]]) -> str:
    day = time.strftime("%Y-%m-%d")
    head = (
        f"{day}, a Debian 12 guest of QEMU on {platform.machine()}, {MEMORY_MIB >> 10} GiB, 2 emulated processors, "
        f"crashkernel={CRASHKERNEL}. Median of the runs.\n"
    )
    lines = [
        head,
        _HEAD,
        "|---" * 10 + "|",
    ]
    for each in CONTESTANTS:
        own = [fact for fact in facts if fact["contestant"] == each.name]
        if not own:
            continue
        good = [fact for fact in own if "restart_sec" in fact]
        lost = f", {len(own) - len(good)} without a result" if any("trouble" in fact for fact in own) else ""
        cells = [
            _median(own, "packed_bytes", 1e6),
            *(f"{_median(own, f'{name}_sec')} / {_median(own, f'{name}_cpu_sec')}" for name in _TIMES),
            _median(own, "used_kib", 1024),
            f"{len(good)}{lost}",
        ]
        lines.append(f"| {each.name} | {' | '.join(cells)} |")
    plain = [fact for fact in facts if "plain_bytes" in fact]
    if plain:
        size, took = _median(plain, "plain_bytes", 1e6), _median(plain, "plain_sec")
        lines += ["", f"An image of `dracut -H`, without anything that captures, has {size} MB and takes {took} s."]
    return "\n".join(lines)


def _median(facts: Sequence[Mapping[str, object]], key: str, unit: float = 1.0) -> str:
    values = [value / unit for fact in facts if isinstance(value := fact.get(key), int | float)]
    return f"{statistics.median(values):.1f}" if values else "-"


if __name__ == "__main__":
    sys.exit(main())
