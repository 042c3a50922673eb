# SPDX-License-Identifier: GPL-2.0-or-later
"""What a second build does not do again, and what makes it do all of it. Shown by what is run and written."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kdumpd
from kdumpd.config.model import Action, DumpSettings
from kdumpd.image import build, check, cpio, parts, squash
from kdumpd.image import builder as builder_module

if TYPE_CHECKING:
    from kdumpd.image import BuildRequest, ImageRecord

Built = tuple["BuildRequest", "ImageRecord"]
_WATCHED = ("subprocess.Popen", "os.rename", "os.remove", "os.mkdir")
_seen: list[tuple[str, Any]] = []
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in _WATCHED:
        _seen.append((event, arguments[0]))


sys.addaudithook(_watch)


def _watched_build(request: BuildRequest) -> tuple[ImageRecord, list[str]]:
    """Builds; the record and the names of the programs that were run, with "write" for each change of a folder."""
    global _watching
    _seen.clear()
    _watching = True
    try:
        record = build(request)
    finally:
        _watching = False
    return record, [str(what) if event == "subprocess.Popen" else "write" for event, what in _seen]


def _request(built: Built, folder: Path, **changes: Any) -> BuildRequest:
    return dataclasses.replace(built[0], output=folder, capture=dataclasses.replace(built[0].capture, **changes))


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    status = {path.name: path.stat() for path in (folder, *folder.iterdir())}
    return {name: (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns) for name, facts in status.items()}


def test_a_build_of_the_same_runs_nothing_and_writes_nothing(image: tuple[Path, ImageRecord], built: Built) -> None:
    folder, record = image
    before = _stamps(folder)
    again, done = _watched_build(_request(built, folder))
    assert again == record
    assert done == []
    assert _stamps(folder) == before


def test_a_change_of_settings_alone_replaces_the_overlay(image: tuple[Path, ImageRecord], built: Built) -> None:
    folder, record = image
    old = (folder / "initrd").read_bytes()
    changed, done = _watched_build(_request(built, folder, final_action=Action.HALT, hostname="db2"))
    # Only the check unpacks what is there.
    assert {name for name in done if name != "write"} == {"unsquashfs"}
    assert changed.image_id != record.image_id
    assert changed.parts[:-1] == record.parts[:-1]
    assert [part.name for part in changed.parts] == [parts.BASE, parts.PAYLOAD, parts.OVERLAY]
    new = (folder / "initrd").read_bytes()
    assert new[: changed.parts[-1].offset] == old[: record.parts[-1].offset]
    assert changed.parts[-1].packed_bytes < 64 << 10
    assert check(folder) == changed
    entries = parts.read(new, changed.parts)
    assert b"final_action halt\n" in entries["etc/kdumpd/supervisor"].content
    # And it is what a build from nothing makes.
    assert build(_request(built, folder, final_action=Action.HALT, hostname="db2"), anew=True) == changed
    assert (folder / "initrd").read_bytes() == new


def test_what_is_in_the_base_makes_another_base(image: tuple[Path, ImageRecord], built: Built) -> None:
    folder, record = image
    request = dataclasses.replace(_request(built, folder), collector_modules=("kdumpd.collector.capture", "wave"))
    changed = build(request)
    assert changed.base_key != record.base_key
    assert [file for file in changed.files if file.path.endswith("/wave.pyc")]


def test_a_damaged_image_is_built_anew(image: tuple[Path, ImageRecord], built: Built) -> None:
    folder, record = image
    data = bytearray((folder / "initrd").read_bytes())
    data[record.parts[1].offset + 5000] ^= 1
    (folder / "initrd").write_bytes(data)
    assert build(_request(built, folder)) == record
    assert check(folder) == record


def test_a_changed_module_is_taken_up(request_for: BuildRequest) -> None:
    first = build(request_for)
    module = request_for.kernel.modules / "kernel/fs/xfs/xfs.ko"
    module.write_bytes(module.read_bytes() + b"changed")
    second = build(request_for)
    assert second.image_id != first.image_id
    assert check(request_for.output) == second


@pytest.mark.parametrize("option", squash.OPTIONS)
def test_a_kernel_without_squashfs_gets_all_of_it_unpacked(request_for: BuildRequest, option: str) -> None:
    config = request_for.root / f"boot/config-{request_for.kernel.release}"
    config.write_text("".join(line for line in config.open() if not line.startswith(f"{option}=")))
    request = dataclasses.replace(request_for, collector_modules=())
    record = build(request)
    assert [part.name for part in record.parts] == [parts.BASE, parts.OVERLAY]
    assert record.unpacked_bytes > 25_000_000
    assert any(f"no squashfs: {option}" in note for note in record.notes)
    assert check(request.output) == record


def test_the_squashfs_holds_what_is_below_usr_and_the_image_is_small(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, record = built
    packed = (request.output / "initrd").read_bytes()
    base = {entry.path for entry in cpio.read(parts.unpack(packed, record.parts[0]))}
    early = {path for path in base if path.startswith("usr/") and not path.startswith("usr/lib/modules")}
    assert "usr/bin/sh" in early
    assert not [path for path in early if "python" in path]
    assert [path for path in base if path.endswith(("loop.ko", "squashfs.ko"))]
    assert not [path for path in base if path.endswith("xfs.ko")]
    assert sum(part.unpacked_bytes for part in record.parts) == record.unpacked_bytes < 20_000_000
    monkeypatch.setattr(squash, "LEVEL", 15)
    inside = [entry for path, entry in parts.read(packed, record.parts).items() if path.split("/")[0] == "usr"]
    assert record.packed_bytes - record.parts[1].packed_bytes + len(squash.write(inside)) <= 12_000_000


def test_without_squashfs_tools_the_image_says_what_it_costs(
    request_for: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squash, "is_installed", lambda: False)
    wanted = builder_module._wanted(request_for, dict.fromkeys(squash.OPTIONS, "m"))
    assert wanted.early is None
    assert "squashfs-tools" in wanted.notes[0]


# A build is killed before each change that it makes in its folder, one after the other.
_KILLED = """
import os, pickle, sys
from kdumpd.image import builder, squash
squash.LEVEL = 1
request = pickle.load(sys.stdin.buffer)
count = 0
def deadly(event, arguments):
    global count
    if event in ("os.rename", "os.remove", "open", "os.mkdir", "os.chmod"):
        if isinstance(arguments[0], str) and str(request.output) in arguments[0]:
            count += 1
            if count == {nth}:
                os.kill(os.getpid(), 9)
sys.addaudithook(deadly)
builder.build(request)
"""


def test_a_change_of_settings_killed_anywhere_leaves_the_old_image_or_the_new_one_whole(
    image: tuple[Path, ImageRecord], built: Built, tmp_path: Path
) -> None:
    original, record = image
    capture = dataclasses.replace(built[0].capture, dump=DumpSettings(levels=(0,)))
    outcomes = []
    for nth in range(1, 40):
        folder = tmp_path / f"killed-{nth}"
        shutil.copytree(original, folder)
        request = dataclasses.replace(built[0], output=folder, capture=capture)
        done = subprocess.run(
            [sys.executable, "-c", _KILLED.format(nth=nth)],
            input=pickle.dumps(request),
            capture_output=True,
            env={"PYTHONPATH": str(Path(kdumpd.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
            check=False,
        )
        assert done.returncode in (-9, 0), done.stderr.decode()
        found = check(folder)
        outcomes.append("old" if found == record else "new")
        assert found.capture in (record.capture, capture)
        if done.returncode == 0:
            break
        if len(list(folder.iterdir())) > 2 and outcomes[-2:] != ["old", "old"]:
            assert build(request).capture == capture
            assert sorted(os.listdir(folder)) == ["image.json", "initrd"]
        shutil.rmtree(folder)
    assert len(outcomes) > 8
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes.count("new") >= 2  # after both renames, and between them
