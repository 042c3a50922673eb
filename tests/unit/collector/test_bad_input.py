# SPDX-License-Identifier: GPL-2.0-or-later
"""Every bad input: one sentence, an exit status other than 0, and nothing that existed is touched."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_kernel import NEW, FakeKernel

from kdumpd.collector.__main__ import main
from kdumpd.dumpfile.reader import DiskdumpReader

TOP = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def vmcore(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small vmcore."""
    return FakeKernel(NEW).write(tmp_path_factory.mktemp("core") / "core").read_bytes()


@pytest.fixture
def folder(tmp_path: Path, vmcore: bytes) -> Path:
    """A folder with things in it that must stay as they are."""
    (tmp_path / "core").write_bytes(vmcore)
    (tmp_path / "taken").write_text("precious")
    (tmp_path / "half.incomplete").write_text("of another run")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not a core\n" * 1000)
    (tmp_path / "cut").write_bytes(vmcore[:100])
    (tmp_path / "flat").write_bytes(b"makedumpfile\0\0\0\0" + bytes(100))
    (tmp_path / "kdump").write_bytes(b"KDUMP   " + bytes(10_000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("taken")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """What is in a folder, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            found[path.name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[path.name] = oct(path.lstat().st_mode)
    return found


def collect(folder: Path, words: str, **how: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    return subprocess.run(
        [sys.executable, "-m", "kdumpd.collector", *words.split()],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False, stdin=subprocess.DEVNULL,
        **how,  # type: ignore[call-overload]  # keywords of subprocess.run
    )  # fmt: skip


BAD = [
    ("", 2, "0 file names were given; VMCORE and OUT are needed"),
    ("core", 2, "one file name was given; VMCORE and OUT are needed"),
    ("core out more", 2, "3 file names were given; VMCORE and OUT are needed"),
    ("-d 32 core out", 2, "dump level '32' is not a number from 0 to 31"),
    ("-d x core out", 2, "dump level 'x' is not a number"),
    ("-d core", 2, "dump level 'core' is not a number"),
    ("--frobnicate core out", 2, "option '--frobnicate' is not known"),
    ("-Q core out", 2, "option '-Q' is not known"),
    ("-z -c core out", 2, "options '-z' and '-c' exclude each other"),
    ("-E -z core out", 2, "option '-E' excludes '-z'"),
    ("-L 5M core out", 2, "option '-L' is not available"),
    ("--config filter.conf core out", 2, "option '--config' is not available"),
    ("--num-threads 0x10 core out", 2, "number of threads '0x10' is not a number"),
    ("--compression-level 3 core out", 2, "'none' has no compression levels"),
    ("core taken", 2, "taken exists"),
    ("core link", 2, "link exists"),
    ("core dangling", 2, "dangling exists"),
    ("core folder", 2, "folder is a directory"),
    ("-f core folder", 2, "folder is a directory"),
    ("-f core pipe", 2, "pipe is neither a regular file nor a new one"),
    ("-f core /dev/null", 2, "/dev/null is neither a regular file nor a new one"),
    ("-f core core", 2, "core is what is read"),
    ("core half", 2, "half.incomplete exists"),
    ("core no/such/folder", 1, "no/such/folder.incomplete cannot be made: No such file or directory"),
    ("core text/out", 1, "cannot be made: Not a directory"),
    ("core /proc/out", 1, "cannot be made: No such file or directory"),
    (f"core {'n' * 300}", 1, "cannot be made: File name too long"),
    ("nowhere out", 1, "nowhere cannot be opened: No such file or directory"),
    ("folder out", 1, "folder cannot be opened: Is a directory"),
    ("empty out", 1, "empty is not an ELF file"),
    ("text out", 1, "text is neither an ELF core file nor a kdump-compressed dump"),
    ("cut out", 1, "cut "),
    ("flat out", 1, "flat ends inside its header"),
    ("kdump out", 1, "kdump "),
    ("taken out", 1, "taken is neither an ELF core file nor a kdump-compressed dump"),
    ("dangling out", 1, "dangling cannot be opened: No such file or directory"),
    ("-x nowhere core out", 1, "nowhere cannot be opened: No such file or directory"),
    ("-x text core out", 1, "text is not an ELF file"),
    ("--dump-dmesg", 2, "0 file names were given"),
    ("--dump-dmesg core out", 1, "core has no log that can be read"),
    ("--dump-dmesg text out", 1, "text is neither"),
    ("--mem-usage", 2, "0 file names were given; VMCORE is needed"),
    ("--mem-usage text", 1, "text is neither"),
    ("--split core out", 2, "--split needs VMCORE and at least two OUTs"),
    ("--split core out out", 2, "--split takes up to 1024 OUTs, each another file"),
    ("--split core out taken", 2, "taken exists"),
    ("--split -E core out out2", 2, "--split writes kdump-compressed dumps only"),
    ("--reassemble core out", 2, "--reassemble needs at least two dumps and OUT"),
    ("--reassemble kdump kdump out", 1, "kdump "),
    ("--reassemble text core out", 1, "text is not a kdump-compressed dump"),
    ("-R", 2, "0 file names were given; OUT is needed"),
    ("-R out", 1, "standard input is not a flattened dump"),
    ("-R taken", 2, "taken exists"),
    ("--verify", 2, "no dump was named"),
    ("--verify nowhere", 1, "nowhere cannot be opened"),
    ("--verify folder", 1, "folder cannot be read: it is a directory"),
    ("--verify text", 1, "text is not a kdump-compressed dump"),
    ("--verify empty", 1, "empty is not a kdump-compressed dump"),
    ("--dump-dmesg --mem-usage core", 2, "options '--dump-dmesg' and '--mem-usage' exclude each other"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "status", "sentence"), BAD, ids=[each[0] or "nothing" for each in BAD])
def test_one_sentence_and_nothing_touched(
    words: str,
    status: int,
    sentence: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(folder)
    monkeypatch.chdir(folder)
    assert main(["--message-level", "4", *words.split()]) == status
    said = capfd.readouterr()
    assert said.out == ""
    first, *more = said.err.splitlines()
    assert first.startswith("kdumpd-collect: ")
    assert sentence in first
    assert len(more) <= 1  # the cure
    assert contents(folder) == before


@pytest.mark.parametrize("words", ["-z -f core taken", "-E -f core taken", "-F -f core taken", "-f core dangling"])
def test_force_replaces_a_file_only_by_a_whole_one(words: str, folder: Path) -> None:
    before = contents(folder)
    done = collect(folder, f"--message-level 4 -d 1 {words}")
    assert (done.returncode, done.stderr) == (0, "")
    after = contents(folder)
    name = words.split()[-1]
    assert after.pop(name) != before.pop(name)
    assert after == before
    # A link is replaced, what it names is not.
    assert (folder / name).is_file() and not (folder / name).is_symlink()


def small_disk(folder: Path, limit: int) -> Callable[[], None]:
    """A file may grow to `limit` only: the kernel answers EFBIG there as it answers ENOSPC on a full disk."""
    import resource

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return prepare


@dataclasses.dataclass(frozen=True)
class Full:
    """A command on a disk that is too small, and what may be left of it."""

    words: str
    left: str


@pytest.mark.parametrize(
    "full",
    [
        Full("-d 0 core out", "out.incomplete"),
        Full("-d 0 -z core out", "out.incomplete"),
        Full("-E -d 0 core out", "out.incomplete"),
        Full("-F -d 0 core out", "out.incomplete"),
        Full("-f -d 0 core taken", "taken.incomplete"),
        Full("--split -d 0 core out out2", "out.incomplete out2.incomplete"),
    ],
    ids=lambda full: full.words,
)
@pytest.mark.parametrize("limit", [8 << 10, 600 << 10])
def test_a_full_disk_is_no_success_and_costs_no_old_file(full: Full, limit: int, folder: Path) -> None:
    kernel = FakeKernel(NEW)
    for at in range(8 << 20, 12 << 20, 4096):
        kernel.memory[at : at + 4096] = hashlib.shake_128(at.to_bytes(8, "little")).digest(4096)
    kernel.write(folder / "core")
    before = contents(folder)
    done = collect(folder, f"--message-level 4 {full.words}", preexec_fn=small_disk(folder, limit))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert "out" not in after and "out2" not in after
    extra = set(after) - set(before)
    assert extra <= set(full.left.split())
    if limit > 500 << 10 and full.words.startswith(("-d", "-f")):
        with DiskdumpReader(folder / full.left) as dump:
            assert dump.incomplete
            assert any(dump.page(pfn) for pfn in dump.pfns()[:500].tolist())


def test_a_folder_that_vanishes_is_a_sentence(folder: Path) -> None:
    gone = folder / "gone"
    gone.mkdir()
    script = (
        "import os, sys; from kdumpd.collector.verbs import output, dump; from kdumpd.collector.__main__ import main\n"
        "check = dump.check_dump\n"
        "def vanish(*words): check(*words); os.unlink('gone/out.incomplete'); os.rmdir('gone')\n"
        "dump.check_dump = vanish\n"
        "sys.exit(main(['--message-level', '4', '-d', '1', '-z', 'core', 'gone/out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={**os.environ, "PYTHONPATH": str(TOP)},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        "kdumpd-collect: gone/out.incomplete cannot be renamed to gone/out: No such file or directory"
    )


def test_a_reader_that_leaves_is_a_sentence(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "kdumpd.collector", "-F", "-d", "0", "core", "--message-level", "4"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(TOP)}, stdout=writer, stderr=subprocess.PIPE, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 1
    assert "nobody reads it any more" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_an_interrupt_is_a_sentence(folder: Path) -> None:
    script = (
        "import sys; from kdumpd.collector import command_line; from kdumpd.collector.__main__ import main\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "command_line.run = stop\n"
        "sys.exit(main(['core', 'out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={**os.environ, "PYTHONPATH": str(TOP)},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "kdumpd-collect: interrupted\n")
