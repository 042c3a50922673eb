# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.loader: two descriptors go over, an answer comes back, and nobody takes silence for success."""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_machine import FakeKernel, FakeMachine
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.errors import KdumpError, LoadError, LoadLostError, UnsupportedError
from kdumpd.host.kexec_pair import OpenPair, Pair, open_pair
from kdumpd.loader.__main__ import serve
from kdumpd.loader.call import call_loader
from kdumpd.loader.client import FILE, KEYS, TOOL, ProcessLoader
from kdumpd.loader.protocol import receive_answer, receive_request, send_answer, send_request

TOP = Path(__file__).resolve().parents[3]


def _pair(machine: FakeMachine, **changes: object) -> Pair:
    (machine.root / "initrd").write_bytes(b"image")
    values: dict[str, object] = {
        "kernel": next((machine.root / "boot").glob("vmlinuz-*")),
        "initrd": machine.root / "initrd",
        "initrd_sha256": hashlib.sha256(b"image").hexdigest(),
        "cmdline": "console=ttyS0",
        **changes,
    }
    return Pair(**values)  # type: ignore[arg-type]  # the fields of Pair


def _sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Listening:
    """Both sockets of systemd, served by threads with the loaders that the test gives."""

    def __init__(self, folder: Path, loaders: dict[str, object]) -> None:
        self._sockets = []
        self.accepted: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name, loader in loaders.items():
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            listening.bind(str(folder / f"{name}.socket"))
            listening.listen()
            threading.Thread(target=self._serve, args=[listening, loader, name], daemon=True).start()
            self._sockets.append(listening)

    def _serve(self, listening: socket.socket, loader: Callable[[OpenPair | None], None], name: str) -> None:
        while True:
            connection, _ = listening.accept()
            self.accepted.put(name)
            with connection:
                opened = receive_request(connection)
                try:
                    loader(opened)
                    send_answer(connection, None)
                except KdumpError as error:
                    send_answer(connection, error)
                except ZeroDivisionError:
                    pass  # dies without an answer


def test_the_descriptors_are_those_that_were_opened(machine: FakeMachine) -> None:
    pair = _pair(machine, kernel_sha256="ab", syscall=KexecSyscall.KEXEC_LOAD, keys=("cryptsetup:1", "cryptsetup:2"))
    ours, theirs = _sockets()
    with ours, theirs, open_pair(pair) as opened:
        pair.initrd.unlink()
        send_request(ours, opened)
        received = receive_request(theirs)
    assert received is not None
    assert received.pair == pair
    assert os.pread(received.initrd_fd, 99, 0) == b"image"
    os.close(received.kernel_fd)
    os.close(received.initrd_fd)


@pytest.mark.parametrize(
    "error", [None, LoadError("no", hint="do", errno=12), UnsupportedError("never"), LoadLostError("who knows")]
)
def test_answers(error: KdumpError | None) -> None:
    ours, theirs = _sockets()
    with ours, theirs:
        send_answer(theirs, error)
        answer = receive_answer(ours)
    assert type(answer) is type(error)
    if error is not None and answer is not None:
        assert (answer.sentence, answer.hint) == (error.sentence, error.hint)
        assert getattr(answer, "errno", None) == getattr(error, "errno", None)


@given(
    st.binary(min_size=1, max_size=200) | st.sampled_from([b"{}", b'{"action":"load"}', b"[]", b'{"action":"unload"}'])
)
def test_nonsense_is_refused_and_leaves_nothing_open(data: bytes) -> None:
    ours, theirs = _sockets()
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs, open("/dev/null") as file:
        socket.send_fds(ours, [data], [file.fileno()])
        with pytest.raises(LoadError, match="does not understand"):
            receive_request(theirs)
    assert len(os.listdir("/proc/self/fd")) <= before - 2  # less when what another test left is freed


def test_the_server_loads_and_answers(machine: FakeMachine) -> None:
    kernel = FakeKernel(machine)
    for action, expected in (("load", "1\n"), ("unload", "0\n")):
        ours, theirs = _sockets()
        with ours, open_pair(_pair(machine)) as opened:
            send_request(ours, opened if action == "load" else None)
            assert serve(theirs, kernel.loader(), kernel.loader()) == 0
            assert receive_answer(ours) is None
        assert (machine.root / "sys/kernel/kexec_crash_loaded").read_text() == expected


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda pair: os.chown(pair.initrd, 65534, 0), "belongs to user 65534"),
        (lambda pair: os.chown(pair.kernel, 65534, 0), "belongs to user 65534"),
        (lambda pair: pair.initrd.chmod(0o620), "written by others"),
        (lambda pair: pair.kernel.chmod(0o602), "written by others"),
        (lambda pair: pair.initrd.write_bytes(b"other"), "damaged"),
        (lambda pair: pair.kernel.write_bytes(pair.kernel.read_bytes()[:2000]), "cut short"),
    ],
)
def test_the_server_refuses_what_is_not_roots_alone(
    machine: FakeMachine, spoil: Callable[[Pair], object], words: str
) -> None:
    kernel = FakeKernel(machine)
    pair = _pair(machine)
    spoil(pair)
    ours, theirs = _sockets()
    with ours, open_pair(pair) as opened:
        send_request(ours, opened)
        assert serve(theirs, kernel.loader(), kernel.loader()) == 0
        answer = receive_answer(ours)
    assert isinstance(answer, LoadError)
    assert words in answer.sentence
    assert kernel.calls == []


def test_a_fault_in_the_loader_is_no_answer(machine: FakeMachine) -> None:
    class Broken:
        def load(self, opened: OpenPair) -> None:
            raise ZeroDivisionError

    ours, theirs = _sockets()
    with ours, open_pair(_pair(machine)) as opened:
        send_request(ours, opened)
        with pytest.raises(ZeroDivisionError):
            serve(theirs, Broken(), FakeKernel(machine).loader())
        with pytest.raises(ValueError, match="Expecting value"):
            receive_answer(ours)


def test_what_cannot_fit_is_refused_before_the_old_one_is_dropped(machine: FakeMachine) -> None:
    machine.reserve("32M")
    kernel = FakeKernel(machine)
    with (
        open_pair(_pair(machine)) as opened,
        pytest.raises(LoadError, match=r"do not fit .* 52 and 0 MiB into 32 MiB"),
    ):
        kernel.loader().load(opened)
    assert kernel.calls == []


def test_a_kept_kernel_that_changed_is_refused(machine: FakeMachine) -> None:
    kernel = FakeKernel(machine)
    with (
        open_pair(_pair(machine, kernel_sha256="00" * 32)) as opened,
        pytest.raises(LoadError, match=r"kernel .* damaged"),
    ):
        kernel.loader().load(opened)
    assert kernel.calls == []


def _absent(opened: OpenPair | None) -> None:
    raise UnsupportedError("This kernel has no kexec_file_load(2)")


def _die(opened: OpenPair | None) -> None:
    raise ZeroDivisionError


def _client(folder: Path) -> ProcessLoader:
    return ProcessLoader(folder, units=True)


@pytest.mark.parametrize(
    ("syscall", "asked"),
    [
        (KexecSyscall.AUTO, [FILE, TOOL]),
        (KexecSyscall.KEXEC_FILE_LOAD, [FILE]),
        (KexecSyscall.KEXEC_LOAD, [TOOL]),
    ],
)
def test_which_loader_is_asked(machine: FakeMachine, tmp_path: Path, syscall: KexecSyscall, asked: list[str]) -> None:
    calls: list[str] = []

    def absent(opened: OpenPair | None) -> None:
        calls.append(FILE)
        _absent(opened)

    Listening(tmp_path, {FILE: absent, TOOL: lambda opened: calls.append(TOOL)})
    with open_pair(_pair(machine, syscall=syscall)) as opened:
        if syscall is KexecSyscall.KEXEC_FILE_LOAD:
            with pytest.raises(UnsupportedError):
                _client(tmp_path).load(opened)
        else:
            _client(tmp_path).load(opened)
    assert calls == asked


KEY = "cryptsetup:af0405db-8e38-4a1c-a4b7-1a88dbb2f72b"


def test_keys_are_for_the_loader_that_is_root(machine: FakeMachine, tmp_path: Path) -> None:
    """And never for another way to load, which would leave them out."""
    asked: list[tuple[str, ...]] = []

    def absent(opened: OpenPair | None) -> None:
        assert opened is not None
        asked.append(opened.pair.keys)
        _absent(opened)

    Listening(tmp_path, {KEYS: absent})
    with open_pair(_pair(machine, keys=(KEY,))) as opened, pytest.raises(UnsupportedError):
        _client(tmp_path).load(opened)
    assert asked == [(KEY,)]
    with (
        open_pair(_pair(machine, keys=(KEY,), syscall=KexecSyscall.KEXEC_LOAD)) as opened,
        pytest.raises(LoadError, match="hands no keys over"),
    ):
        _client(tmp_path).load(opened)
    assert asked == [(KEY,)]


def test_keys_that_are_still_named_are_taken_back_as_root(machine: FakeMachine, tmp_path: Path) -> None:
    (machine.root / "sys/kernel/config/crash_dm_crypt_keys/kdumpd-old").mkdir(parents=True)
    asked: list[int] = []
    Listening(tmp_path, {KEYS: lambda opened: asked.append(1)})
    with open_pair(_pair(machine)) as opened:
        ProcessLoader(tmp_path, root=machine.root, units=True).load(opened)
    assert asked == [1]


def test_where_neither_way_works_both_are_named(machine: FakeMachine, tmp_path: Path) -> None:
    def missing(opened: OpenPair | None) -> None:
        raise UnsupportedError("kexec-tools is not installed", hint="apt install kexec-tools")

    Listening(tmp_path, {FILE: _absent, TOOL: missing})
    with (
        open_pair(_pair(machine)) as opened,
        pytest.raises(UnsupportedError, match=r"no kexec_file.*, and kexec-tools") as e,
    ):
        _client(tmp_path).load(opened)
    assert e.value.hint == "apt install kexec-tools"


def test_an_error_is_not_tried_in_the_other_way(machine: FakeMachine, tmp_path: Path) -> None:
    calls: list[int] = []

    def refuse(opened: OpenPair | None) -> None:
        raise LoadError("the signature was rejected")

    Listening(tmp_path, {FILE: refuse, TOOL: lambda opened: calls.append(1)})
    with open_pair(_pair(machine)) as opened, pytest.raises(LoadError, match="signature"):
        _client(tmp_path).load(opened)
    assert calls == []


def test_silence_is_no_success(machine: FakeMachine, tmp_path: Path) -> None:
    Listening(tmp_path, {FILE: _die})
    with open_pair(_pair(machine)) as opened, pytest.raises(LoadLostError, match="without an answer"):
        _client(tmp_path).load(opened)
    with pytest.raises(LoadLostError):
        _client(tmp_path).unload()


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not listen") as caught:
        _client(tmp_path).unload()
    assert caught.value.hint == "systemctl start kdumpd-load.socket"


def test_without_systemd_it_is_a_child(machine: FakeMachine, tmp_path: Path) -> None:
    """The real process and the real system call, which refuses: this pair is no kernel that anything would start."""
    (machine.root / "proc/sys/kernel/kexec_load_disabled").write_text("1\n")
    loader = ProcessLoader(tmp_path, root=machine.root, units=False)
    with open_pair(_pair(machine)) as opened, pytest.raises(LoadError, match="kexec_load_disabled"):
        loader.load(opened)
    with pytest.raises(LoadError, match=r"damaged|not a Linux kernel"):
        pair = _pair(machine, initrd_sha256="0" * 64)
        (machine.root / "proc/sys/kernel/kexec_load_disabled").write_text("0\n")
        with open_pair(pair) as opened:
            loader.load(opened)


def test_a_loader_that_is_asked_for_nothing_just_ends(machine: FakeMachine) -> None:
    ours, theirs = _sockets()
    ours.close()
    kernel = FakeKernel(machine)
    assert serve(theirs, kernel.loader(), kernel.loader()) == 0
    ours, theirs = _sockets()
    words = ["/usr/bin/python3", "-m", "kdumpd.loader"]
    with theirs:
        child = subprocess.Popen(words, cwd=TOP, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ours.close()
    assert child.communicate(timeout=180) == (b"", b"")
    assert child.returncode == 0


def test_a_loader_that_started_already_is_asked(machine: FakeMachine, tmp_path: Path) -> None:
    """One connection for the load, made before; what follows makes its own."""
    asked: list[OpenPair | None] = []
    listening = Listening(tmp_path, {FILE: asked.append})
    client = _client(tmp_path)
    with open_pair(_pair(machine)) as opened, client.soon():
        assert listening.accepted.get(timeout=180) == FILE
        client.load(opened)
        assert len(asked) == 1
        assert listening.accepted.empty()
        client.unload()
        assert listening.accepted.get(timeout=180) == FILE
    assert len(asked) == 2
    with _client(tmp_path / "nowhere").soon():
        pass


def test_who_is_called_before_anything_is_known(tmp_path: Path) -> None:
    """Where there is a note and nothing is loaded; the client takes the connection over."""
    asked: list[OpenPair | None] = []
    run = tmp_path / "run"
    run.mkdir()
    listening = Listening(run, {FILE: asked.append})
    for name in ("kexec", "kexec_crash_loaded"):
        path = tmp_path / "sys/kernel" / (name if "_" in name else f"{name}/crash_loaded")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0\n")
        assert call_loader(str(tmp_path), "ready.json", "run") is None
        (tmp_path / "ready.json").write_text("{}")
        path.write_text("1\n")
        assert call_loader(str(tmp_path), "ready.json", "run") is None
        path.write_text("0\n")
        assert call_loader(str(tmp_path), "ready.json", "nowhere") is None
        assert listening.accepted.empty()
        waiting = call_loader(str(tmp_path), "ready.json", "run")
        assert waiting is not None
        assert listening.accepted.get(timeout=180) == FILE
        client = ProcessLoader(run, units=True, waiting=waiting)
        with client.soon():
            client.unload()
        assert listening.accepted.empty()
        assert waiting.fileno() == -1
        (tmp_path / "ready.json").unlink()
        path.unlink()
    assert asked == [None, None]
    ours, theirs = _sockets()
    ProcessLoader(run, units=True, waiting=ours).let_go()
    assert theirs.recv(1) == b""


def test_others_than_root_are_refused(machine: FakeMachine) -> None:
    """The mode of the socket keeps them out; should it ever not, the loader does."""
    ours, theirs = _sockets()
    code = (
        "import os,socket,sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "a,b=socket.socketpair(socket.AF_UNIX,socket.SOCK_SEQPACKET);"
        'a.sendall(b\'{"action":"unload"}\'); os.dup2(b.fileno(),0); sys.path.insert(0,sys.argv[1]);'
        "from kdumpd.loader.__main__ import main; main(['--root',sys.argv[2]]); print(a.recv(9999).decode())"
    )
    ours.close()
    theirs.close()
    done = subprocess.run(
        [sys.executable, "-c", code, str(TOP), "/nowhere"], capture_output=True, text=True, check=True, timeout=180
    )
    assert "came from user 65534" in done.stdout


def test_it_starts_without_what_takes_long() -> None:
    """Each of these is time that a machine waits for its capture kernel."""
    code = "import sys, kdumpd.loader.__main__; print(*sorted(sys.modules))"
    words = ["/usr/bin/python3", "-s", "-c", code]
    done = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=True, timeout=180)
    loaded = set(done.stdout.split())
    assert "kdumpd.host.kexec" in loaded
    assert not loaded & {"dataclasses", "inspect", "argparse", "subprocess", "logging", "kdumpd.config.model", "numpy"}
