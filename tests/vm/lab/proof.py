# SPDX-License-Identifier: GPL-2.0-or-later
"""What a crash folder has to show before it counts: modes, result, marker, pages, and what crash(8) finds in it.

Every function raises AssertionError with a sentence, and returns one line about what it found.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Sequence
from pathlib import Path

from . import pages, tools
from .aptroot import run

TOP = Path(__file__).resolve().parents[3]
LEVEL = 31
PANIC = "sysrq triggered crash"


def complete(folder: Path) -> str:
    """The manifest says complete, the dump has its final name and checksum, and nobody else may read it."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "kexec-dmesg.log")
    assert names == ["manifest.json", "vmcore", "vmcore-dmesg.txt"], f"the crash folder holds {names}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, f"{folder.name} has mode {folder.stat().st_mode:o}"
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, f"{path.name} has mode {path.stat().st_mode:o}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["result"] == "complete", f"manifest.json says {manifest['result']}: {manifest['reason']}"
    assert PANIC in manifest["panic"], f"manifest.json has the panic line {manifest['panic']!r}"
    for key in ("dump", "log"):
        record = manifest[key]
        path = folder / record["name"]
        assert path.stat().st_size == record["size_bytes"], f"{path.name} has not the size in manifest.json"
        regions = record["regions"] or [{"offset": 0, "size_bytes": record["size_bytes"], "sha256": record["sha256"]}]
        at = 0
        for region in regions:
            assert region["offset"] == at, f"the regions of {path.name} in manifest.json leave a gap at {at}"
            at += region["size_bytes"]
            assert digest(path, region) == region["sha256"], f"{path.name} has not the checksums in manifest.json"
        assert at == record["size_bytes"], f"the regions of {path.name} in manifest.json end at {at}"
    return f"complete, {manifest['dump']['size_bytes'] / 1e6:.1f} MB, checksums right, modes 0700 and 0600"


def digest(path: Path, region: dict[str, int]) -> str:
    """SHA-256 of a part of a file."""
    with path.open("rb") as file:
        file.seek(region["offset"])
        return hashlib.sha256(file.read(region["size_bytes"])).hexdigest()


def marker(folder: Path, wanted: str) -> str:
    """The line that was written to the kernel log just before the crash is in the saved log, and the panic too."""
    text = (folder / "vmcore-dmesg.txt").read_text(errors="replace")
    for words in (wanted, PANIC, "Linux version"):
        assert words in text, f"vmcore-dmesg.txt lacks {words!r}"
    return f"{wanted} found in {len(text.splitlines())} lines of kernel log"


def page_set(folder: Path, raw: Path) -> str:
    """No page that makedumpfile keeps of the same crashed memory is missing, and none differs in a byte."""
    reference = raw.with_name("makedumpfile.vmcore")
    reference.unlink(missing_ok=True)
    run([*tools.program("makedumpfile"), "-c", "-d", str(LEVEL), str(raw), str(reference)], timeout=300)
    found = pages.compare(folder / "vmcore", reference)
    assert found.common > 1000, f"only {found.common} pages in common with makedumpfile's dump"
    assert not found.missing, (
        f"{len(found.missing)} of makedumpfile's pages are missing: {', '.join(list(pages.runs(found.missing))[:8])}"
    )
    assert not found.differing, (
        f"{len(found.differing)} pages differ from makedumpfile's, first {found.differing[0]:#x}"
    )
    return f"{found.common} pages as makedumpfile keeps them, 0 missing, 0 differing, {len(found.extra)} more kept"


def accepted(folder: Path) -> str:
    """makedumpfile reads the dump and, filtering it again at the same level, finds nothing more to drop."""
    again = folder.parent / "again.vmcore"
    again.unlink(missing_ok=True)
    argv = [*tools.program("makedumpfile"), "-c", "-d", str(LEVEL), str(folder / "vmcore"), str(again)]
    run(argv, timeout=300)
    found = pages.compare(again, folder / "vmcore")
    again.unlink()
    assert not found.differing and not found.extra, "makedumpfile read other pages than the dump holds"
    return f"makedumpfile reads it; of {found.common + len(found.missing)} pages it would drop {len(found.missing)}"


def verified(folder: Path) -> str:
    """kdumpd-collect itself finds nothing wrong with the dump; a check of its own, not one that judges it."""
    argv = ["/usr/bin/python3", "-m", "kdumpd.collector", "--verify", str(folder / "vmcore")]
    return run(argv, timeout=120, cwd=TOP)


def opens(
    folder: Path, vmlinux: Path, wanted: str, running: Sequence[str] = ("systemd", "kthreadd")
) -> tuple[str, str]:
    """crash(8) opens the dump: panic, crashed task with backtrace, processes, log. Also returns sys and bt."""
    dump = folder / "vmcore"
    shown = tools.crash(vmlinux, dump, ["sys", "bt"])
    assert PANIC in shown, f"crash does not show the panic:\n{shown}"
    assert "sysrq_handle_crash" in shown, f"the backtrace lacks sysrq_handle_crash:\n{shown}"
    processes = tools.crash(vmlinux, dump, ["ps"])
    for name in running:
        assert name in processes, f"ps lacks {name}:\n{processes}"
    log = tools.crash(vmlinux, dump, ["log"])
    assert wanted in log and PANIC in log, f"crash's log lacks the marker or the panic:\n{log[-2000:]}"
    return shown, f"crash opens it: panic, sysrq_handle_crash in bt, {len(processes.splitlines())} lines of ps, log"
