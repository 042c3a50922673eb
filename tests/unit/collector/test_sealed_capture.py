# SPDX-License-Identifier: GPL-2.0-or-later
"""A capture that is encrypted: nothing of the memory reaches the target in the clear, whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kernel import OLD, PAGE, PAGES, FakeKernel
from plain_capture import settings

from kdumpd.cli.__main__ import main as ctl
from kdumpd.collector.capture import Places, capture
from kdumpd.collector.source import Source
from kdumpd.config.capture import CaptureConfig
from kdumpd.crashes.index import Crash, Standing, read_crash
from kdumpd.crashes.verify import verify as verify_files
from kdumpd.dumpfile.diskdump import Status
from kdumpd.dumpfile.manifest import Result
from kdumpd.dumpfile.reader import DiskdumpReader, verify
from kdumpd.errors import UnsupportedError
from kdumpd.targets import choose, files
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.sealed import SealedStore
from kdumpd.targets.target import Target

SECRET = b"hunter2-in-memory"
LOG = ["one", f"password={SECRET.decode()}", "Kernel panic - not syncing: hunter2-in-panic", "end"]


class World:
    """A dead kernel with secrets in its pages, its log and its VMCOREINFO, a folder as target, and a key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "disk"
        self.folder.mkdir(parents=True)
        self.key = folder / "key.txt"
        subprocess.run(["age-keygen", "-o", self.key], capture_output=True, check=True)
        done = subprocess.run(["age-keygen", "-y", self.key], capture_output=True, text=True, check=True)
        self.public = done.stdout.strip()
        kernel = FakeKernel(OLD)
        kernel.pages[PAGES // 2 :, 0] = 1 << 4
        kernel.memory[0x300 * PAGE : 0x400 * PAGE] = os.urandom(0x100 * PAGE)
        kernel.memory[0x280 * PAGE : 0x281 * PAGE] = (SECRET * 300)[:PAGE]
        kernel.extra.append(SECRET.decode())
        core = kernel.write(folder / "core")
        path = folder / "capture.json"
        config = settings(kernel="6.1.0-fake", encrypt_to=(self.public,))
        path.write_text(config.to_json())
        assert CaptureConfig.from_json(path.read_text(), "settings") == config
        kmsg = folder / "kmsg"
        kmsg.write_text("6,1,1500000,-;the capture kernel repeats hunter2-in-messages\n")
        self.places = Places(
            settings=path, image=folder / "image.json", vmcore=core, mountpoint=folder / "mnt",
            heartbeat=folder / "alive", answers=None, kmsg=kmsg,
        )  # fmt: skip

    def crash(self) -> Crash:
        """The one crash that is there."""
        (path,) = (self.folder / "crash").iterdir()
        found = read_crash(path)
        assert found is not None
        return found

    def assert_secret(self) -> None:
        """No word of the memory is in any file, or in the name of one."""
        for path in (self.folder / "crash").rglob("*"):
            assert b"hunter2" not in os.fsencode(path)
            if path.is_file():
                data = path.read_bytes()
                assert b"hunter2" not in data, path
                assert b"Kernel panic" not in data, path
                assert b"KDUMP   " not in data, path

    def names(self) -> set[str]:
        return {path.name for path in self.crash().path.iterdir()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path / "world")

    class Folder(Target):
        name = "a folder"

        @contextlib.contextmanager
        def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[CrashDirectory]:
            with CrashDirectory.create(world.folder, "crash", name) as directory:
                yield directory

    monkeypatch.setattr(choose, "_plain", lambda *_: Folder())
    monkeypatch.setattr(Source, "log_lines", lambda _: list(LOG))
    return world


def test_a_whole_capture_is_a_secret_and_comes_back(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert capture(world.places) == 0
    said = capsys.readouterr().out
    assert "/vmcore.age: " in said
    assert "hunter2" not in said
    secrets = {"vmcore.age", "vmcore-dmesg.txt.age", "kexec-dmesg.log.age", "manifest.json.age"}
    assert world.names() == {"manifest.json", *secrets}
    world.assert_secret()
    crash = world.crash()
    assert crash.standing is Standing.COMPLETE
    assert crash.dump == crash.path / "vmcore.age"
    assert crash.log == crash.path / "vmcore-dmesg.txt.age"
    assert verify_files(crash) is None
    manifest = crash.manifest
    assert manifest is not None
    assert (manifest.encrypted_to, manifest.panic) == ((world.public,), None)
    assert manifest.pages["verified"] >= 64
    assert [note for note in manifest.notes if not note.endswith("notes are in manifest.json.age")] == []
    for path in crash.path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600

    out = world.folder / "out"
    assert ctl(["decrypt", str(crash.path), "-i", str(world.key), "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {name.removesuffix(".age") for name in secrets}
    assert "hunter2-in-messages" in (out / "kexec-dmesg.log").read_text()
    assert (out / "vmcore-dmesg.txt").read_text().splitlines() == LOG
    verify(out / "vmcore", sample=None)
    with DiskdumpReader(out / "vmcore") as dump:
        assert dump.page(0x280) == (SECRET * 300)[:PAGE]
        assert dump.page_count == PAGES // 2
    clear = read_crash(out)
    assert clear is not None
    assert (clear.standing, verify_files(clear)) == (Standing.COMPLETE, None)
    assert clear.manifest is not None
    assert clear.manifest.panic == LOG[2]
    assert any(SECRET.decode() in note for note in clear.manifest.notes)
    log = subprocess.run(
        ["age", "-d", "-i", world.key, crash.path / "vmcore-dmesg.txt.age"], capture_output=True, text=True, check=True
    )
    assert log.stdout.splitlines() == LOG


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 6, 7, 8])
def test_a_full_disk_after_any_write(after: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real_one, real_parts = os.pwrite, os.pwritev
    count = 0

    def full(fd: int) -> None:
        nonlocal count
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("manifest.json.tmp"):
            count += 1
            if count > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pwrite(fd: int, data: bytes, at: int) -> int:
        full(fd)
        return real_one(fd, data, at)

    def pwritev(fd: int, parts: list[bytes], at: int) -> int:
        full(fd)
        return real_parts(fd, parts, at)

    monkeypatch.setattr(files.os, "pwrite", pwrite)
    monkeypatch.setattr(files.os, "pwritev", pwritev)
    status = capture(world.places)
    world.assert_secret()
    crash = world.crash()
    assert crash.manifest is not None
    if status == 0:  # all fitted, at least without manifest.json.age
        assert verify_files(crash) is None
        lost = any("the whole manifest was not saved" in note for note in crash.manifest.notes)
        assert lost == (count > after)
        return
    assert crash.manifest.result is not Result.COMPLETE
    assert "vmcore.age" not in world.names()
    said = str(crash.manifest.reason) + " ".join(crash.manifest.notes)
    assert "No space left on device" in said or "an earlier part failed" in said


def test_a_byte_that_changes_on_the_way_is_noticed_before_the_final_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capture kernel has no private key, but the key of the file: it reads all of it back."""
    real = files.OutputFile.close

    def close(self: files.OutputFile) -> None:
        if self.name == "vmcore.incomplete.age" and self._fd >= 0:
            size = os.fstat(self._fd).st_size
            byte = self.read_at(size // 2, 1)[0]
            self.write_at(size // 2, bytes([byte ^ 4]))
        real(self)

    monkeypatch.setattr(files.OutputFile, "close", close)
    assert capture(world.places) == 1
    crash = world.crash()
    assert crash.manifest is not None
    assert crash.manifest.result is Result.INCOMPLETE
    assert "is damaged at byte" in str(crash.manifest.reason)
    assert "vmcore.incomplete.age" in world.names()
    assert crash.dump_bytes == (crash.path / "vmcore.incomplete.age").stat().st_size
    world.assert_secret()
    out = world.folder / "out"
    assert ctl(["decrypt", str(crash.path), "-i", str(world.key), "-o", str(out)]) == 1
    with DiskdumpReader(out / "vmcore.incomplete") as dump:
        assert dump.header.status & Status.INCOMPLETE
    clear = read_crash(out)
    assert clear is not None
    assert clear.standing is Standing.INCOMPLETE


def test_without_the_library_nothing_is_written_in_the_clear(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    assert capture(world.places) == 1
    assert world.names() == {"manifest.json"}
    world.assert_secret()
    crash = world.crash()
    assert crash.standing is Standing.FAILED
    assert crash.manifest is not None
    assert "without the Python module cryptography" in str(crash.manifest.reason)
    assert any(note.startswith("the whole manifest was not saved") for note in crash.manifest.notes)
    assert "install python3-cryptography" in capsys.readouterr().out


def test_a_fault_of_ours_does_not_show_what_it_stumbled_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError(f"not a number: {SECRET!r}")

    monkeypatch.setattr("kdumpd.collector.capture.write_dump", fail)
    assert capture(world.places) == 1
    world.assert_secret()
    crash = world.crash()
    assert crash.manifest is not None
    assert crash.manifest.reason == "internal fault, see manifest.json.age"
    out = world.folder / "out"
    assert ctl(["decrypt", str(crash.path), "-i", str(world.key), "-o", str(out)]) in (0, 1)
    assert SECRET.decode() in (out / "manifest.json").read_text()


def test_an_interrupted_capture_is_found_and_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power went: no manifest, and the dump ends anywhere."""
    assert capture(world.places) == 0
    crash = world.crash()
    raw = (crash.path / "vmcore.age").read_bytes()
    (crash.path / "vmcore.incomplete.age").write_bytes(raw[: len(raw) * 9 // 10])
    for name in ("vmcore.age", "manifest.json", "manifest.json.age"):
        (crash.path / name).unlink()
    crash = world.crash()
    assert crash.standing is Standing.INTERRUPTED
    assert crash.log is not None
    out = world.folder / "out"
    assert ctl(["decrypt", str(crash.path), "-i", str(world.key), "-o", str(out)]) == 1
    with DiskdumpReader(out / "vmcore.incomplete") as dump:
        assert dump.incomplete
        assert dump.present_count == PAGES
    assert (out / "vmcore-dmesg.txt").read_text().splitlines() == LOG


def test_an_encrypted_file_is_only_written_forward(world: World) -> None:
    with CrashDirectory.create(world.folder, "crash", "x") as directory:
        store = SealedStore(directory, (world.public,))
        with store.create_file("kexec-dmesg.log") as file:
            file.write_parts(0, [b"ab", b"cd"])
            for write in (lambda: file.write_at(0, b"x"), lambda: file.read_at(0, 1), lambda: file.truncate(1)):
                with pytest.raises(UnsupportedError):
                    write()
            file.write_at(4, b"ef")
            file.truncate(6)
            file.sync()
        stored = store.stored("kexec-dmesg.log")
        assert stored is not None
        assert stored.read_at(0, 100) == b"abcdef"
        stored.close()
        store.rename("kexec-dmesg.log", "other.log")
        assert store.stored("other.log") is None
        store.remove("other.log")
        assert list(directory.path.iterdir()) == []
        with store.create_file("vmcore.incomplete") as dump:
            assert dump.free_bytes() is not None
            assert dump.scratch(100) is None
            with pytest.raises(UnsupportedError):
                dump.truncate(0)
