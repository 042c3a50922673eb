# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps over SSH, to a real OpenSSH server: whole captures, and the wire cut, frozen or the server gone in between."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kernel import OLD, PAGES, FakeKernel
from lab.sshd import Sshd, Wire, running
from places import destination

from kdumpd.collector import capture as capturing
from kdumpd.collector.capture import Places, capture
from kdumpd.config.capture import CaptureConfig, SshDestination
from kdumpd.config.model import DEFAULT_DUMP, Action
from kdumpd.dumpfile.manifest import Manifest, Result
from kdumpd.dumpfile.reader import verify
from kdumpd.dumpfile.stored import open_stored
from kdumpd.errors import NoSpaceError, TargetError
from kdumpd.targets import link, ssh
from kdumpd.targets.ssh import SshServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd") / "one") as found:
        yield found


@pytest.fixture
def core(tmp_path: Path) -> Path:
    kernel = FakeKernel(OLD)
    kernel.pages[PAGES // 2 :, 0] = 1 << 4
    kernel.memory[0x600000:0x800000] = os.urandom(0x200000)
    return kernel.write(tmp_path / "core")


@pytest.fixture
def wired(server: Sshd) -> Iterator[Callable[..., Wire]]:
    """Makes wires to the server."""
    made: list[Wire] = []

    def make(*cuts: int, freeze_at: int | None = None) -> Wire:
        made.append(Wire(server.port, *cuts, freeze_at=freeze_at))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


def nothing() -> None:
    pass


def run_capture(tmp_path: Path, core: Path, *wanted: SshDestination) -> int:
    settings = CaptureConfig(
        hostname="host",
        kernel="6.1.0-fake",
        destinations=wanted,
        dump=DEFAULT_DUMP,
        final_action=Action.REBOOT,
        failure_action=Action.REBOOT,
    )
    (tmp_path / "capture.json").write_text(settings.to_json())
    places = Places(
        settings=tmp_path / "capture.json", image=tmp_path / "none", vmcore=core, mountpoint=tmp_path, heartbeat=None
    )
    return capture(places)


@pytest.mark.parametrize("fault", ["host key", "our own"])
def test_the_next_target_gets_the_dump(
    fault: str, server: Sshd, tmp_path: Path, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = destination(server, tmp_path / "one"), destination(server, tmp_path / "two")
    if fault == "host key":
        (tmp_path / "empty").write_text("")
        first = dataclasses.replace(first, known_hosts=str(tmp_path / "empty"))
    else:
        real = ssh.SshServer

        def faulty(wanted: SshDestination) -> SshServer:
            if wanted is not second and wanted.directory.endswith("one"):
                raise LookupError("unknown encoding: idna")
            return real(wanted)

        monkeypatch.setattr(ssh, "SshServer", faulty)
    assert run_capture(tmp_path, core, first, second) == 0
    assert not (tmp_path / "one").exists()
    manifest = check_whole(only_crash(tmp_path / "two"))
    assert any("was tried" in note for note in manifest.notes)


def only_crash(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def manifest_of(crash: Path) -> Manifest:
    return Manifest.from_json((crash / "manifest.json").read_text(), "manifest")


def check_whole(crash: Path) -> Manifest:
    """The dump is complete, its checksums are those of the manifest, and nobody else can read it."""
    manifest = manifest_of(crash)
    assert manifest.result is Result.COMPLETE, manifest.reason
    assert manifest.dump is not None
    verify(crash / "vmcore", sample=None)
    data = (crash / "vmcore").read_bytes()
    assert len(data) == manifest.dump.size_bytes
    assert sum(region.size_bytes for region in manifest.dump.regions) == len(data)
    for region in manifest.dump.regions:
        piece = data[region.offset : region.offset + region.size_bytes]
        assert hashlib.sha256(piece).hexdigest() == region.sha256
    assert stat.S_IMODE(crash.stat().st_mode) == 0o700
    assert {path.name for path in crash.iterdir()} >= {"vmcore", "manifest.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in crash.iterdir()} == {0o600}
    return manifest


def test_a_whole_capture(server: Sshd, tmp_path: Path, core: Path) -> None:
    assert run_capture(tmp_path, core, destination(server, tmp_path / "a/b c")) == 0
    crash = only_crash(tmp_path / "a/b c")
    manifest = check_whole(crash)
    assert not any("server" in note for note in manifest.notes)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


def test_two_crashes_of_one_second(server: Sshd, tmp_path: Path, core: Path) -> None:
    for _ in range(2):
        assert run_capture(tmp_path, core, destination(server, tmp_path / "two")) == 0
    crashes = sorted((tmp_path / "two").iterdir())
    assert [path.name for path in crashes] == [crashes[0].name, f"{crashes[0].name}-2"]
    for crash in crashes:
        check_whole(crash)


def test_modes_whatever_the_servers_umask(tmp_path: Path, core: Path) -> None:
    """From the first byte: a reader that looks all the time never finds a file that others may open."""
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        over = False
        while not over:
            over = done.is_set()  # one look more when all of it is there
            with contextlib.suppress(OSError):
                for path in (tmp_path / "out").rglob("*"):
                    with contextlib.suppress(OSError):
                        status = path.stat()
                        if status.st_size or path.is_dir():
                            seen.add(stat.S_IMODE(status.st_mode))

    with running(tmp_path / "sshd", sftp="internal-sftp -u 000") as server:
        looker = threading.Thread(target=look)
        looker.start()
        try:
            assert run_capture(tmp_path, core, destination(server, tmp_path / "out")) == 0
        finally:
            done.set()
            looker.join()
    assert seen == {0o600, 0o700}


CUTS = sorted(random.Random(5).sample(range(4000, 2_200_000), 12))


@pytest.mark.parametrize("cut", CUTS)
def test_the_wire_is_cut(cut: int, server: Sshd, wired: Callable[..., Wire], tmp_path: Path, core: Path) -> None:
    wire = wired(cut, cut // 2)
    assert run_capture(tmp_path, core, destination(server, tmp_path / "out", wire.port)) == 0
    assert wire.connections >= 2
    check_whole(max((tmp_path / "out").iterdir(), key=lambda path: path.name))


def test_the_wire_falls_silent(
    server: Sshd, wired: Callable[..., Wire], tmp_path: Path, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "REPLY_SEC", 2.0)
    monkeypatch.setattr(link, "REPLY_SEC", 5.0)
    wire = wired(freeze_at=1_000_000)
    assert run_capture(tmp_path, core, destination(server, tmp_path / "out", wire.port)) == 0
    assert wire.connections >= 2  # more where a server that is only slow was given up, too
    check_whole(only_crash(tmp_path / "out"))


def test_the_server_is_killed_and_comes_back(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    with running(tmp_path / "sshd") as server:
        target = SshServer(destination(server, tmp_path / "out"))
        with target.open_crash("c", nothing) as store, store.create_file("f") as file:
            file.write_at(0, data[: 1 << 20])
            server.stop()
            comes_back = threading.Timer(2.0, server.start)
            comes_back.start()
            file.write_at(1 << 20, data[1 << 20 :])
            file.sync()
            assert file.read_at(0, len(data) + 1) == data
        comes_back.join()
        assert (tmp_path / "out/c/f").read_bytes() == data


def test_the_server_never_comes_back(tmp_path: Path) -> None:
    with running(tmp_path / "sshd") as server:
        target = SshServer(destination(server, tmp_path / "out"), give_up_sec=3.0)
        began = time.monotonic()
        with (
            pytest.raises(TargetError, match="did not come back within 3 s"),
            target.open_crash("c", nothing) as store,
            store.create_file("vmcore.incomplete") as file,
        ):
            file.write_at(0, bytes(100_000))
            file.sync()
            server.stop()
            file.write_at(100_000, bytes(100_000))
            file.sync()
        assert time.monotonic() - began < 60
    assert {path.name for path in (tmp_path / "out/c").iterdir()} == {"vmcore.incomplete"}


def test_a_frozen_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its TCP still answers: only the deadline for replies tells."""
    monkeypatch.setattr(ssh, "REPLY_SEC", 2.0)
    with running(tmp_path / "sshd") as server:
        target = SshServer(destination(server, tmp_path / "out"), give_up_sec=4.0)
        try:
            with (
                pytest.raises(TargetError, match="did not come back within 4 s"),
                target.open_crash("c", nothing) as store,
                store.create_file("f") as file,
            ):
                file.write_at(0, bytes(1000))
                file.sync()
                server.signal(signal.SIGSTOP)
                began = time.monotonic()
                file.write_at(1000, bytes(1000))
                file.sync()
            assert time.monotonic() - began < 60
        finally:
            server.signal(signal.SIGCONT)


def test_what_a_server_lost_is_noticed(tmp_path: Path) -> None:
    """A machine that comes back without what it had acknowledged must not end in a complete dump."""
    with running(tmp_path / "sshd") as server:
        target = SshServer(destination(server, tmp_path / "out"))
        with (
            pytest.raises(TargetError, match="lost what it had taken"),
            target.open_crash("c", nothing) as store,
            store.create_file("f") as file,
        ):
            file.write_at(0, bytes(1 << 20))
            file.sync()
            server.stop()
            os.truncate(tmp_path / "out/c/f", 1000)
            server.start()
            file.write_at(1 << 20, bytes(1000))
            file.sync()


def test_the_servers_disk_is_full(tmp_path: Path, core: Path) -> None:
    """The pages that matter are there and the log, and nothing says complete."""
    with running(tmp_path / "sshd", room="1500k") as server:
        assert run_capture(tmp_path, core, destination(server, "/mnt/crash")) == 1
        crash = only_crash(Path(f"/proc/{server.pid}/root/mnt/crash"))
        manifest = manifest_of(crash)
        assert manifest.result is Result.INCOMPLETE
        assert "room for" in (manifest.reason or "")
        names = {path.name for path in crash.iterdir()}
        assert "vmcore.incomplete" in names
        assert "vmcore" not in names


def test_a_full_disk_is_told_at_the_write_that_found_no_room(tmp_path: Path) -> None:
    with running(tmp_path / "sshd", room="1m") as server:
        target = SshServer(destination(server, "/mnt/crash"))
        with target.open_crash("c", nothing) as store, store.create_file("f") as file:
            with pytest.raises(NoSpaceError, match="no space left on the server"):
                file.write_at(0, os.urandom(2 << 20))
            # What finds room afterwards is written: the writer of dumps halves what did not fit.
            file.write_at(0, b"x" * 4096)
            file.sync()
            assert file.read_at(0, 4) == b"xxxx"


def test_a_write_that_was_refused_unseen_spoils_the_file(tmp_path: Path) -> None:
    """Without a look at the room nobody knows whose pages are missing: then no descriptor may follow."""
    with running(tmp_path / "sshd", sftp="internal-sftp -P fsync,statvfs,posix-rename,limits", room="1200k") as server:
        target = SshServer(destination(server, "/mnt/crash"))
        with target.open_crash("c", nothing) as store:
            assert store.notes == ["the server cannot be asked to put files on stable storage (fsync@openssh.com)"]
            with pytest.raises(TargetError, match="disk full"), store.create_file("f") as file:
                for at in range(0, 2 << 20, 1 << 18):
                    with contextlib.suppress(TargetError):
                        file.write_at(at, os.urandom(1 << 18))
                for _ in range(2):
                    with pytest.raises(TargetError):
                        file.sync()
                file.sync()
            store.remove("f")
            with store.create_file("g") as file:
                file.write_at(0, b"abc")
            store.rename("g", "h")
            assert Path(f"/proc/{server.pid}/root/mnt/crash/c/h").read_bytes() == b"abc"


def test_a_server_that_runs_no_commands(tmp_path: Path, core: Path) -> None:
    """The way the manual recommends: after a break all is read back, for nobody can say what arrived."""
    with running(tmp_path / "sshd", "ForceCommand internal-sftp") as server:
        wire = Wire(server.port, 1_000_000)
        assert run_capture(tmp_path, core, destination(server, tmp_path / "out", wire.port)) == 0
        wire.close()
        check_whole(only_crash(tmp_path / "out"))
        with SshServer(destination(server, tmp_path / "out")).open_crash("c", nothing) as store:
            with store.create_file("f") as file:
                file.write_at(0, b"abc")
            assert store.digest("f", 0, 3) is None


def test_the_servers_own_checksum(server: Sshd, tmp_path: Path) -> None:
    with SshServer(destination(server, tmp_path / "it's $HOME")).open_crash("c", nothing) as store:
        with store.create_file("f") as file:
            file.write_at(0, b"abcdef")
        assert store.digest("f", 2, 3) == hashlib.sha256(b"cde").hexdigest()
        assert store.digest("f", 0, 6) == hashlib.sha256(b"abcdef").hexdigest()


def test_bytes_that_changed_on_the_way_are_no_dump(
    server: Sshd, tmp_path: Path, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = capturing.check_dump

    def check_dump(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        dump = only_crash(tmp_path / "out") / "vmcore.incomplete"
        with dump.open("r+b") as file:
            file.seek(dump.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    monkeypatch.setattr(capturing, "check_dump", check_dump)
    assert run_capture(tmp_path, core, destination(server, tmp_path / "out")) == 1
    crash = only_crash(tmp_path / "out")
    assert "not what arrived" in (manifest_of(crash).reason or "")
    assert not (crash / "vmcore").exists()


def test_new_keys_on_the_way(tmp_path: Path, core: Path) -> None:
    with running(tmp_path / "sshd", "RekeyLimit 300K") as server:
        assert run_capture(tmp_path, core, destination(server, tmp_path / "out")) == 0
        check_whole(only_crash(tmp_path / "out"))


def test_a_file_in_the_way_of_the_folder(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TargetError, match="in the way"),
        SshServer(destination(server, tmp_path / "file/x")).open_crash("c", nothing),
    ):
        pass


def test_a_server_with_a_shell_alone(tmp_path: Path, core: Path) -> None:
    with running(tmp_path / "sshd", sftp=None) as server:
        assert run_capture(tmp_path, core, destination(server, tmp_path / "it's $(out)")) == 0
    crash = only_crash(tmp_path / "it's $(out)")
    manifest = manifest_of(crash)
    assert manifest.result is Result.COMPLETE
    assert any("flattened" in note for note in manifest.notes)
    assert {path.name for path in crash.iterdir()} >= {"vmcore", "manifest.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in crash.iterdir()} == {0o600}
    with contextlib.closing(open_stored(crash / "vmcore")) as stored:
        assert stored.complete
    verify(crash / "vmcore", sample=None)


def test_a_pipe_that_breaks_leaves_no_final_name(tmp_path: Path, core: Path) -> None:
    with running(tmp_path / "sshd", sftp=None) as server:
        wire = Wire(server.port, 700_000)
        assert run_capture(tmp_path, core, destination(server, tmp_path / "out", wire.port)) == 1
        wire.close()
    assert {path.name for path in only_crash(tmp_path / "out").iterdir()} <= {"vmcore.incomplete", "vmcore-dmesg.txt"}


def test_a_pipe_into_a_full_disk(tmp_path: Path, core: Path) -> None:
    with running(tmp_path / "sshd", sftp=None, room="1m") as server:
        assert run_capture(tmp_path, core, destination(server, "/mnt/crash")) == 1
        crash = only_crash(Path(f"/proc/{server.pid}/root/mnt/crash"))
        assert not (crash / "vmcore").exists()
