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
from kdumpd.config.model import Action, DumpSettings, Hooks
from kdumpd.config.network import Interface, LinkKind, Network
from kdumpd.host.kernels import find_kernel, read_kernel_config
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import build, check, cpio, parts, reuse, squash
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
    assert {name for name in done if name != "write"} == set()
    assert changed.image_id != record.image_id
    assert changed.parts[:-1] == record.parts[:-1]
    assert [part.name for part in changed.parts] == [parts.BASE, parts.PAYLOAD, parts.KERNEL, parts.OVERLAY]
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


def _another_kernel(built: Built, folder: Path, output: Path) -> BuildRequest:
    """A request for a kernel that never was built for, below `folder`."""
    modules = folder / "lib/modules/6.12.0-other"
    shutil.copytree(built[0].kernel.modules, modules)
    (modules / "kernel/fs/xfs/xfs.ko").write_bytes(b"\x7fELFanother xfs")
    shutil.copytree(built[0].root / "boot", folder / "boot")
    for path in (folder / "boot").iterdir():
        path.rename(str(path).replace(built[0].kernel.release, "6.12.0-other"))
    kernel = find_kernel("6.12.0-other", folder)
    capture = dataclasses.replace(built[0].capture, kernel=kernel.release)
    return dataclasses.replace(built[0], kernel=kernel, root=folder, output=output, capture=capture)


def test_an_image_for_another_kernel_takes_all_but_modules_from_the_one_that_is_there(
    image: tuple[Path, ImageRecord], built: Built, tmp_path: Path
) -> None:
    folder, first = image
    request = _another_kernel(built, tmp_path / "root", folder.with_name("other"))
    second, done = _watched_build(request)
    assert {name for name in done if name != "write"} == set()
    assert second.parts[:2] == first.parts[:2]
    assert check(request.output) == second
    entries = parts.read((request.output / "initrd").read_bytes(), second.parts)
    assert entries["kdumpd/modules/6.12.0-other/kernel/fs/xfs/xfs.ko"].content == b"\x7fELFanother xfs"
    assert not [path for path in entries if first.kernel in path]
    # And it is what a build from nothing makes.
    packed = (request.output / "initrd").read_bytes()
    assert build(request, anew=True) == second
    assert (request.output / "initrd").read_bytes() == packed


def test_a_target_on_another_file_system_keeps_what_is_not_a_module(
    image: tuple[Path, ImageRecord], built: Built
) -> None:
    folder, first = image
    destination = dataclasses.replace(built[0].targets[0].destination, fstype="ext4")  # type: ignore[type-var]
    request = dataclasses.replace(
        _request(built, folder, destinations=(destination,)),
        targets=(ResolvedTarget(destination=destination, block=None),),
    )
    changed, done = _watched_build(request)
    assert {name for name in done if name != "write"} == set()
    assert changed.base_key != first.base_key
    assert changed.parts[:2] == first.parts[:2]
    assert not [file for file in changed.files if file.path.endswith("xfs.ko")]
    assert check(folder) == changed


def test_nothing_is_taken_from_a_folder_that_others_can_write_to_or_that_is_stale(
    image: tuple[Path, ImageRecord], built: Built
) -> None:
    folder, record = image
    assert reuse.find_stock(folder.with_name("other"), record.stock_key) is not None
    assert reuse.find_stock(folder.with_name("other"), "0" * 64) is None
    folder.chmod(0o770)
    assert reuse.find_stock(folder.with_name("other"), record.stock_key) is None
    folder.chmod(0o700)
    os.chown(folder, 65534, -1)
    assert reuse.find_stock(folder.with_name("other"), record.stock_key) is None
    os.chown(folder, os.geteuid(), -1)
    folder.with_name("link").symlink_to(folder)
    assert reuse.find_stock(folder.with_name("other"), record.stock_key) is not None
    changed = next(file for file in record.files if file.path == "usr/bin/python3.11")
    assert changed.source is not None
    source = dataclasses.replace(changed.source, size=1)
    files = tuple(dataclasses.replace(file, source=source) if file is changed else file for file in record.files)
    (folder / "image.json").write_text(dataclasses.replace(record, files=files).to_json())
    assert reuse.find_stock(folder.with_name("other"), record.stock_key) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"hooks": Hooks(pre=("/bin/true",))},
        {"extra_bins": ("/usr/bin/true",)},
        {"encrypt_to": ("age1" + "q" * 58,)},
        {"network": Network(interfaces=(Interface(name="eth0", kind=LinkKind.CARD, addresses=()),))},
    ],
)
def test_what_is_in_the_stock_makes_another_stock(
    built: Built, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder_module.network, "modules", lambda *_: ())
    config = read_kernel_config(built[1].kernel, built[0].root)
    changed = builder_module._wanted(_request(built, built[0].output, **changes), config)
    assert changed.stock_key != built[1].stock_key == builder_module._wanted(built[0], config).stock_key


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
    assert [part.name for part in record.parts] == [parts.BASE, parts.KERNEL, parts.OVERLAY]
    assert record.unpacked_bytes > 25_000_000
    assert any(f"no squashfs: {option}" in note for note in record.notes)
    assert check(request.output) == record


def test_the_squashfs_holds_what_is_below_usr_and_the_image_is_small(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, record = built
    packed = (request.output / "initrd").read_bytes()
    base = {entry.path for entry in cpio.read(parts.unpack(packed, record.parts[0]))}
    kernel = {entry.path for entry in cpio.read(parts.unpack(packed, record.parts[2]))}
    early = {path for path in base if path.startswith("usr/")}
    assert "usr/bin/sh" in early
    assert not [path for path in early if "python" in path]
    assert not [path for path in early | base if path.endswith(".ko")]
    assert {path.rpartition("/")[2] for path in kernel if path.endswith(".ko")} == {
        *("loop.ko", "squashfs.ko", "xfs.ko", "libcrc32c.ko")
    }
    assert sum(part.unpacked_bytes for part in record.parts) == record.unpacked_bytes < 20_000_000
    monkeypatch.setattr(squash, "LEVEL", 9)
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
