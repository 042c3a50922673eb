# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.kexec: what is checked before the system call, and what each of its errors becomes."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kdumpd.errors import KdumpError, LoadError, UnsupportedError
from kdumpd.host import kexec
from kdumpd.host.kernel_image import read_header
from kdumpd.host.kexec import FILE_ON_CRASH, FILE_UNLOAD, FileLoader, kexec_file_load, read_loaded
from kdumpd.host.kexec_errors import load_error
from kdumpd.host.kexec_pair import Pair, open_pair
from kdumpd.host.security import Security

Answer = Callable[[int, int, str, int], int]


def _kernel(*, magic: bytes = b"HdrS", cmdline_size: int = 2047, version: int = 0x20F) -> bytes:
    head = bytearray(0x1000)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = magic
    struct.pack_into("<H", head, 0x206, version)
    head[0x211] = 1  # LOADED_HIGH
    struct.pack_into("<H", head, 0x236, 0x7F)
    struct.pack_into("<I", head, 0x238, cmdline_size)
    struct.pack_into("<I", head, 0x260, 50 << 20)
    return bytes(head)


KEY = "cryptsetup:af0405db-8e38-4a1c-a4b7-1a88dbb2f72b"


class Tree:
    """A kernel, an image and the sysfs file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loaded_file = root / "sys/kernel/kexec_crash_loaded"
        self.loaded_file.parent.mkdir(parents=True)
        self.loaded_file.write_text("0\n")
        self.kernel = root / "vmlinuz"
        self.kernel.write_bytes(_kernel())
        self.initrd = root / "initrd"
        self.initrd.write_bytes(b"image" * 1000)
        self.calls: list[tuple[bytes, bytes, str, int]] = []

    def pair(self, cmdline: str = "console=ttyS0") -> Pair:
        digest = hashlib.sha256(self.initrd.read_bytes()).hexdigest()
        return Pair(kernel=self.kernel, initrd=self.initrd, initrd_sha256=digest, cmdline=cmdline)

    def load(self, *codes: int, pair: Pair | None = None, says_loaded: bool = True) -> None:
        """Opens and loads."""
        with open_pair(pair or self.pair()) as opened:
            self.loader(*codes, says_loaded=says_loaded).load(opened)

    def keys(self, *, handed_over: bool = True) -> Path:
        """A folder as in configfs, with room for one key; writing to `reuse` fails when the image has none."""
        folder = self.root / "sys/kernel/config/crash_dm_crypt_keys"
        folder.mkdir(parents=True)
        (folder / "count").write_text("1\n")
        if handed_over:
            (folder / "reuse").write_text("0\n")
        else:
            (folder / "reuse").symlink_to("/proc/self/none/reuse")
        return folder

    def loader(self, *codes: int, says_loaded: bool = True) -> FileLoader:
        answers = list(codes)

        def call(kernel_fd: int, initrd_fd: int, cmdline: str, flags: int) -> int:
            read = [os.pread(fd, 1 << 20, 0) if fd >= 0 else b"" for fd in (kernel_fd, initrd_fd)]
            self.calls.append((read[0], read[1], cmdline, flags))
            code = answers.pop(0) if answers else 0
            if code == 0:
                self.loaded_file.write_text(f"{int(says_loaded and not flags & FILE_UNLOAD)}\n")
            return code

        return FileLoader("x86_64", root=self.root, syscall=call, keyring=lambda wanted: wanted == KEY)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_kernel_gets_the_files_that_were_checked(tree: Tree) -> None:
    tree.load(pair=tree.pair("a b"))
    assert tree.calls == [(tree.kernel.read_bytes(), tree.initrd.read_bytes(), "a b", FILE_ON_CRASH)]


def test_keys_are_named_before_the_load(tree: Tree) -> None:
    folder = tree.keys()
    tree.load(pair=tree.pair()._replace(keys=(KEY,)))
    (name,) = (path for path in folder.iterdir() if path.is_dir())
    assert (name / "description").read_text() == f"{KEY}\n"
    assert read_loaded(tree.root) is True


def test_without_the_key_the_kernel_is_not_asked(tree: Tree) -> None:
    folder = tree.keys()
    with pytest.raises(LoadError, match="cryptsetup:other, is not in root's keyring"):
        tree.load(pair=tree.pair()._replace(keys=("cryptsetup:other",)))
    assert tree.calls == []
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_an_image_without_its_keys_does_not_stay(tree: Tree) -> None:
    """It would capture nothing, and the kernel says that it is loaded."""
    tree.keys(handed_over=False)
    with pytest.raises(LoadError, match="without the keys of the encrypted target"):
        tree.load(pair=tree.pair()._replace(keys=(KEY,)))
    assert [flags for *_, flags in tree.calls] == [FILE_ON_CRASH, FILE_ON_CRASH | FILE_UNLOAD]
    assert read_loaded(tree.root) is False


def test_a_key_of_others_that_is_gone_is_named(tree: Tree) -> None:
    folder = tree.keys()
    (folder / "theirs").mkdir()
    with pytest.raises(LoadError, match=r"another key named in .* is not in root's keyring"):
        tree.load(errno.ENOKEY)


def test_unload(tree: Tree) -> None:
    tree.loaded_file.write_text("1\n")
    tree.loader().unload()
    assert tree.calls == [(b"", b"", "", FILE_ON_CRASH | FILE_UNLOAD)]
    assert read_loaded(tree.root) is False


def test_success_without_a_loaded_kernel_is_an_error(tree: Tree) -> None:
    with pytest.raises(LoadError, match="yet says that none is loaded"):
        tree.load(says_loaded=False)


def test_interruptions_are_tried_again_but_not_for_ever(tree: Tree) -> None:
    tree.load(errno.EINTR, errno.EINTR, 0)
    assert len(tree.calls) == 3
    with pytest.raises(LoadError, match="interrupted"):
        tree.load(*[errno.EINTR] * 50)
    assert len(tree.calls) < 30


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda tree: tree.kernel.write_bytes(_kernel(magic=b"JUNK")), "not a Linux kernel"),
        (lambda tree: tree.kernel.write_bytes(b""), "not a Linux kernel"),
        (lambda tree: tree.kernel.write_bytes(_kernel(version=0x200)), "boot protocol 2.00"),
        (lambda tree: tree.kernel.write_bytes(_kernel(cmdline_size=20)), "command line"),
        (lambda tree: tree.kernel.unlink(), "cannot be opened: No such file"),
        (lambda tree: tree.initrd.unlink(), "image .* cannot be opened"),
        (lambda tree: (tree.initrd.unlink(), os.mkfifo(tree.initrd)), "not a regular file"),
        (lambda tree: (tree.initrd.unlink(), tree.initrd.mkdir()), "not a regular file"),
    ],
)
def test_bad_files_never_reach_the_kernel(tree: Tree, spoil: Callable[[Tree], object], words: str) -> None:
    pair = tree.pair()
    spoil(tree)
    with pytest.raises(LoadError, match=words):
        tree.load(pair=pair)
    assert tree.calls == []


def test_one_flipped_bit_in_the_image_is_noticed(tree: Tree) -> None:
    pair = tree.pair()
    data = bytearray(tree.initrd.read_bytes())
    data[4321] ^= 1
    tree.initrd.write_bytes(data)
    with pytest.raises(LoadError, match="damaged") as caught:
        tree.load(pair=pair)
    assert caught.value.hint is not None
    assert "rebuild" in caught.value.hint
    assert tree.calls == []


CODES = [
    errno.EPERM, errno.ENOKEY, errno.EKEYREJECTED, errno.ENODATA, errno.EBADMSG, errno.EADDRNOTAVAIL, errno.ENOMEM,
    errno.EBUSY, errno.ENOEXEC, errno.EINVAL, errno.EINTR, errno.EACCES, errno.ENOSYS, errno.EFBIG,
]  # fmt: skip


def test_each_error_has_a_sentence_of_its_own() -> None:
    sentences = {load_error(code, Security()).sentence for code in CODES}
    assert len(sentences) == len(CODES)
    for sentence in sentences:
        assert sentence[0].isupper()
        assert "\n" not in sentence


@pytest.mark.parametrize("code", CODES)
def test_errors_of_the_call_are_raised(tree: Tree, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kexec, "_BUSY_SECONDS", 0.001)
    kind = UnsupportedError if code == errno.ENOSYS else LoadError
    with pytest.raises(kind):
        tree.load(*[code] * 40)


def test_an_unknown_error_uses_the_kernels_words() -> None:
    assert "quota exceeded" in load_error(errno.EDQUOT, Security()).sentence


@pytest.mark.parametrize(
    ("security", "words"),
    [
        (Security(load_disabled=True), "kexec_load_disabled"),
        (Security(load_limit=0), "kexec_load_limit_panic"),
        (Security(lockdown="integrity"), "locked down"),
        (Security(lockdown="none"), "CAP_SYS_BOOT"),
    ],
)
def test_permission_denied_has_four_causes(security: Security, words: str) -> None:
    assert words in load_error(errno.EPERM, security).sentence


def test_the_cause_is_read_below_the_root(tree: Tree) -> None:
    (tree.root / "proc/sys/kernel").mkdir(parents=True)
    (tree.root / "proc/sys/kernel/kexec_load_disabled").write_text("1\n")
    with pytest.raises(LoadError, match="kexec_load_disabled"):
        tree.load(errno.EPERM)


@pytest.mark.parametrize("name", ["kexec_crash_loaded", "kexec/crash_loaded"])
def test_both_names_of_the_loaded_file(tmp_path: Path, name: str) -> None:
    assert read_loaded(tmp_path) is None
    path = tmp_path / "sys/kernel" / name
    path.parent.mkdir(parents=True)
    path.write_text("1\n")
    assert read_loaded(tmp_path) is True


def test_the_real_call_answers_on_this_machine(tree: Tree) -> None:
    """Two bad descriptors load nothing on any kernel, yet go through the true system call and its errno."""
    if os.uname().machine not in ("x86_64", "aarch64"):
        with pytest.raises(UnsupportedError):
            kexec_file_load("vax")
        return
    code = kexec_file_load(os.uname().machine)(-1, -1, "x", FILE_ON_CRASH)
    assert code in (errno.EBADF, errno.ENOSYS, errno.EPERM, errno.EADDRNOTAVAIL, errno.EBUSY)


def test_an_unknown_machine_is_said_so() -> None:
    with pytest.raises(UnsupportedError, match="vax"):
        kexec_file_load("vax")


def test_the_header_tells_the_memory_a_kernel_wants(tree: Tree) -> None:
    header = read_header(tree.kernel, "x86_64")
    assert header is not None
    assert header.init_size_bytes == 50 << 20
    with pytest.raises(KdumpError, match="a kernel for x86_64, this machine is aarch64"):
        read_header(tree.kernel, "aarch64")
    with pytest.raises(LoadError, match="cannot be read"):
        read_header(tree.root / "nothing", "x86_64")
