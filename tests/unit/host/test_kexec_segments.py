# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.kexec_segments: what is handed to kexec_load(2), and what never is."""

from __future__ import annotations

import errno
import hashlib
import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_arm64_boot import run
from test_fdt import blob

from kdumpd.errors import KdumpError, LoadError, UnsupportedError
from kdumpd.host import kexec
from kdumpd.host.core_elf import parse_core, read_machine_memory, without
from kdumpd.host.fdt import parse_fdt
from kdumpd.host.kexec_pair import Pair, open_pair
from kdumpd.host.kexec_segments import Segment, SegmentLoader
from kdumpd.host.reservation import MemoryRange

MIB = 1 << 20
# An arm64 machine of 1 GiB under QEMU, the kernel of Debian 13, crashkernel=256M
IOMEM = """\
09000000-09000fff : pl011@9000000
40000000-7fffffff : System RAM
  40210000-41c0ffff : Kernel code
  41c10000-427fffff : reserved
  42800000-42d2ffff : Kernel data
  68000000-77ffffff : Crash kernel
  7a000000-7fffffff : reserved
"""
DIRECT = 0xFFF0_0000_0000_0000 - 0x4000_0000
VOFFSET = 0xFFFF_8000_4000_0000
INFO = f"OSRELEASE=6.12.0\nNUMBER(VA_BITS)=52\nNUMBER(kimage_voffset)={VOFFSET:#x}\n"
IMAGE = b"the image" * 1000


def kernel_image(size: int = 40 * MIB) -> bytes:
    head = struct.pack("<IIQQQ", 0x91005A4D, 0, 0, size, 0xA) + bytes(24) + b"ARM\x64" + bytes(4)
    return head + b"code" * 5000


def kcore(*, direct: int = DIRECT, info: str = INFO, paddr: bool = True) -> bytes:
    """/proc/kcore's head: notes, vmalloc, the kernel's text, memory in two pieces."""
    nowhere = (1 << 64) - 1
    text = info.encode()
    note = struct.pack("<III", 5, 4, 1) + b"CORE\0\0\0\0" + b"abcd"
    note += struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text
    loads = [
        (0xFFFF_8000_8000_0000, nowhere, 1 << 46),
        (0x4021_0000 + VOFFSET, 0x4021_0000, 0x2B2_0000),
        ((0x4000_0000 + direct) % (1 << 64), 0x4000_0000, 0x2800_0000),
        ((0x7800_0000 + direct) % (1 << 64), 0x7800_0000, 0x800_0000),
    ]
    at = 64 + 56 * (len(loads) + 1)
    rows = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), 0, 0)]
    rows += [
        struct.pack("<IIQQQQQQ", 1, 7, 4096, vaddr, phys if paddr else nowhere, size, size, 4096)
        for vaddr, phys, size in loads
    ]
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 183, 1, 0, 64, 0, 0, 64, 56, len(rows), 0, 0, 0) + b"".join(
        [*rows, note]
    )


class Board:
    """A machine of files, and a kernel that notes what it is given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entry = 0
        self.segments: list[tuple[int, int, bytes]] = []
        self.answers: list[int] = [0]
        self.calls = 0
        self.write("proc/iomem", IOMEM)
        self.write("proc/kcore", kcore())
        self.write("sys/kernel/kexec_crash_loaded", "0\n")
        self.write("sys/kernel/kexec_crash_size", f"{256 * MIB}\n")
        self.write("sys/kernel/vmcoreinfo", "0x0000000042e51000 1024\n")
        self.write("sys/firmware/fdt", blob())
        for cpu in (0, 1):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/crash_notes", f"7fe{cpu}3400\n")
            self.write(f"sys/devices/system/cpu/cpu{cpu}/crash_notes_size", "424\n")
        self.write("sys/devices/system/cpu/cpufreq/x", "")
        self.write("Image", kernel_image())
        self.write("initrd", IMAGE)

    def write(self, name: str, data: bytes | str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def _call(self, entry: int, segments: Sequence[Segment]) -> int:
        self.calls += 1
        code = self.answers.pop(0)
        if code == 0:
            self.entry = entry
            self.segments = [(one.address, one.memory_bytes, bytes(one.data[: len(one.data)])) for one in segments]
            self.write("sys/kernel/kexec_crash_loaded", "1\n")
        return code

    def load(self, *, arch: str = "aarch64", tree: Path | None = None) -> None:
        digest = hashlib.sha256(IMAGE).hexdigest()
        pair = Pair(kernel=self.root / "Image", initrd=self.root / "initrd", initrd_sha256=digest, cmdline="a b=c")
        with open_pair(pair) as opened:
            SegmentLoader(arch, root=self.root, tree=tree, call=self._call).load(opened)

    def refuses(self, kind: type[KdumpError], words: str) -> None:
        with pytest.raises(kind, match=words):
            self.load()
        assert self.calls == 0


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_five_segments_lie_in_the_reservation(board: Board) -> None:
    board.load()
    assert len(board.segments) == 5
    spans = sorted((address, address + size) for address, size, _ in board.segments)
    assert spans[0][0] >= 0x6800_0000 and spans[-1][1] <= 0x7800_0000
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(
        address % 65536 == 0 and size % 65536 == 0 and len(data) <= size for address, size, data in board.segments
    )
    kernel, initrd = board.segments[0], board.segments[1]
    assert kernel[2] == kernel_image() and kernel[1] == 40 * MIB
    assert initrd[2] == IMAGE


def test_the_parts_find_each_other(board: Board) -> None:
    board.load()
    kernel, initrd, dtb, core, entry = board.segments
    registers, target = run(entry[2])
    assert (board.entry, target, registers[0]) == (entry[0], kernel[0], dtb[0])
    chosen = parse_fdt(dtb[2], "dtb").root.child("chosen").properties
    assert struct.unpack(">Q", chosen["linux,initrd-start"]) == (initrd[0],)
    assert struct.unpack(">Q", chosen["linux,initrd-end"]) == (initrd[0] + len(IMAGE),)
    assert struct.unpack(">QQ", chosen["linux,elfcorehdr"]) == (core[0], len(core[2]))
    assert struct.unpack(">QQ", chosen["linux,usable-memory-range"]) == (0x6800_0000, 256 * MIB)
    assert chosen["bootargs"] == b"a b=c\0"


def test_the_core_describes_the_machine(board: Board) -> None:
    board.load()
    data = board.segments[3][2]
    assert struct.unpack_from("<HHI", data, 16) == (4, 183, 1)
    rows = parse_core(data, MemoryRange(start=0x4021_0000, last=0x42D2_FFFF))
    notes = [(row.paddr, row.offset, row.file_bytes) for row in rows if row.kind == 4]
    assert notes == [(0x7FE03400, 0x7FE03400, 424), (0x7FE13400, 0x7FE13400, 424), (0x42E51000, 0x42E51000, 0x1024)]
    (text,) = (row for row in rows if row.is_text)
    assert text.vaddr == 0x4021_0000 + VOFFSET
    memory = [(row.paddr, row.memory_bytes, row.vaddr) for row in rows if row.kind == 1 and not row.is_text]
    assert memory == [
        (0x4000_0000, 0x2800_0000, 0xFFF0_0000_0000_0000),
        (0x7800_0000, 0x0800_0000, 0xFFF0_0000_3800_0000),
    ]


def test_low_memory_is_usable_too(board: Board) -> None:
    """crashkernel=256M,high reserves a second range for devices; no part of the image may lie there."""
    low = "  50000000-57ffffff : Crash kernel\n"
    board.write("proc/iomem", IOMEM.replace("  68000000", f"{low}  68000000"))
    board.load()
    assert all(address >= 0x6800_0000 for address, _, _ in board.segments)
    chosen = parse_fdt(board.segments[2][2], "dtb").root.child("chosen").properties
    ranges = struct.unpack(">QQQQ", chosen["linux,usable-memory-range"])
    assert ranges == (0x6800_0000, 256 * MIB, 0x5000_0000, 128 * MIB)


def test_a_named_tree_takes_the_place_of_the_boot_loaders(board: Board, tmp_path: Path) -> None:
    tree = parse_fdt(blob(), "x")
    tree.root.set_text("model", "a board")
    (tmp_path / "x.dtb").write_bytes(tree.to_bytes())
    board.load(tree=tmp_path / "x.dtb")
    assert parse_fdt(board.segments[2][2], "dtb").root.text("model") == "a board"
    with pytest.raises(LoadError, match="cannot be read"):
        board.load(tree=tmp_path / "missing.dtb")


@pytest.mark.parametrize(
    ("name", "data", "kind", "words"),
    [
        ("proc/iomem", "00000000-00000000 : System RAM\n", LoadError, "shows no addresses"),
        ("proc/iomem", "40000000-7fffffff : System RAM\n", LoadError, "No memory is reserved"),
        ("proc/kcore", b"", UnsupportedError, "makes no sense"),
        ("proc/kcore", kcore(paddr=False), UnsupportedError, "no physical addresses"),
        ("proc/kcore", kcore(direct=0x10_0000_0000), UnsupportedError, "no address of a kernel"),
        ("sys/kernel/vmcoreinfo", "", UnsupportedError, "VMCOREINFO"),
        ("sys/firmware/fdt", b"rubbish" * 20, LoadError, "not a device tree"),
        ("sys/kernel/security/lockdown", "none [integrity]\n", LoadError, "locked down"),
        ("Image", b"x" * 5000, LoadError, "not a Linux kernel"),
        ("Image", kernel_image(300 * MIB), LoadError, "do not fit"),
        ("initrd", b"another", LoadError, "damaged"),
    ],
)
def test_what_cannot_work_never_reaches_the_kernel(
    board: Board, name: str, data: bytes | str, kind: type[KdumpError], words: str
) -> None:
    board.write(name, data)
    board.refuses(kind, words)


@pytest.mark.parametrize(
    "name", ["proc/kcore", "sys/firmware/fdt", "sys/devices/system/cpu/cpu1/crash_notes", "sys/kernel/vmcoreinfo"]
)
def test_what_the_kernel_does_not_tell_is_left_to_kexec_tools(board: Board, name: str) -> None:
    (board.root / name).unlink()
    board.refuses(UnsupportedError, "")


def test_other_machines_are_left_to_kexec_tools(board: Board) -> None:
    with pytest.raises(UnsupportedError, match="on aarch64 only"):
        board.load(arch="x86_64")


def test_without_vmcoreinfo_in_kcore_the_text_is_left_out(board: Board) -> None:
    board.write("proc/kcore", kcore(info=""))
    board.load()
    memory = read_machine_memory(board.root)
    assert not any(row.is_text for row in parse_core(board.segments[3][2], memory.text))


def test_the_kernel_is_asked_again_while_somebody_else_loads(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kexec, "_BUSY_SECONDS", 0.001)
    board.answers = [errno.EBUSY, errno.EINTR, 0]
    board.load()
    assert board.calls == 3


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EPERM, LoadError, "CAP_SYS_BOOT"),
        (errno.EADDRNOTAVAIL, LoadError, "do not fit"),
        (errno.ENOSYS, UnsupportedError, r"no kexec_load\(2\) \(CONFIG_KEXEC"),
    ],
)
def test_errors_of_the_kernel_have_sentences(board: Board, code: int, kind: type[KdumpError], words: str) -> None:
    board.answers = [code]
    with pytest.raises(kind, match=words):
        board.load()


def test_success_without_a_loaded_kernel(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "_call", lambda *_: 0)
    with pytest.raises(LoadError, match="says that none is loaded"):
        board.load()


def test_ram_is_cut_into_whole_pages() -> None:
    ram = [MemoryRange(start=0x1000_0800, last=0x1000_57FF)]
    hole = MemoryRange(start=0x1000_2000, last=0x1000_2FFF)
    found = [(span.start, span.last) for span in without(ram, [hole], 4096)]
    assert found == [(0x1000_1000, 0x1000_1FFF), (0x1000_3000, 0x1000_4FFF)]


@pytest.mark.parametrize(
    ("page_size", "start", "end"), [(16384, 0x1000_4000, 0x1004_8000), (65536, 0x1001_0000, 0x1004_0000)]
)
def test_pages_may_be_larger(page_size: int, start: int, end: int) -> None:
    ram = [MemoryRange(start=0x1000_0800, last=0x1004_8FFF), MemoryRange(start=0x2000_1000, last=0x2000_2FFF)]
    assert [(span.start, span.last + 1) for span in without(ram, [], page_size)] == [(start, end)]
