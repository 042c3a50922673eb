# SPDX-License-Identifier: GPL-2.0-or-later
"""The ELF core file that /proc/vmcore is: physical memory by page frame.

Knows the file format (linux: fs/proc/vmcore.c, elf(5)), nothing of what the pages mean. All addresses here
are physical. A pfn that no PT_LOAD holds cannot be read; nothing is invented for it.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import mmap
import os
import stat
from pathlib import Path

import numpy as np

from kdumpd.errors import VmcoreError, os_reason
from kdumpd.vmcore.arrays import NDArray, ints
from kdumpd.vmcore.elf_headers import INCOMPLETE, read_headers
from kdumpd.vmcore.memory import PAGE_SHIFT, CrashedMemory, Extent, Segment

# A damaged header must not cost bitmaps for memory that no machine has: a segment that ends above this, and above
# 64 times of what the file holds (machines have holes between their memory), is not believed.
_PLAUSIBLE_END = 4 << 40
_PLAUSIBLE_RATIO = 64

# /proc/vmcore fills the page tables of a mapping when it is made: a window costs 8 bytes a page, and a few are
# enough because memory is mostly read in ascending order.
_WINDOW = 4 << 20
_WINDOWS = 4


class ElfCore(CrashedMemory):
    """An open vmcore. Use it as a context manager; not safe for use from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Raises VmcoreError when `path` cannot be opened or is no ELF core of a known machine."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise VmcoreError(f"{path} cannot be opened: {os_reason(error)}") from error
        self.descriptors = (self._fd,)
        try:
            if stat.S_ISDIR(os.fstat(self._fd).st_mode):
                raise VmcoreError(f"{path} cannot be read: it is a directory")
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            headers = read_headers(path, self.size, self._header_bytes)
        except OSError as error:
            os.close(self._fd)
            raise VmcoreError(f"{path} cannot be read: {os_reason(error)}") from error
        except BaseException:
            os.close(self._fd)
            raise
        self.machine, self.segments, self.notes_block = headers.machine, headers.segments, headers.notes_block
        limit = max(_PLAUSIBLE_END, _PLAUSIBLE_RATIO * self.size)
        incomplete: tuple[str, ...] = ()
        # No kernel sets any flag here: together with others, the bit is a damaged header and not makedumpfile's word.
        self.incomplete = headers.flags == INCOMPLETE
        believed = tuple(each for each in self.segments if each.paddr + each.filesz <= limit)
        if self.incomplete:
            incomplete = (f"{path} is incomplete; pages that were lost are zero in it, or left out",)
        in_proc = _is_in_proc(self._fd)
        # The kernel's own files have no end that could be cut off.
        cut = 0 if in_proc else _cut_bytes(believed, self.size)
        if cut:
            self.incomplete = True
            incomplete = (*incomplete, f"{path} is cut short: {cut} bytes that its headers name are missing")
        unbelieved = (
            f"a segment of {each.filesz:#x} bytes at physical {each.paddr:#x} is not believed and left out"
            for each in self.segments
            if each.paddr + each.filesz > limit
        )
        self.doubts = (*incomplete, *headers.doubts, *unbelieved)
        self._believed, self._limit = believed, limit
        self._find_pages()
        self._windows: dict[int, mmap.mmap] = {}
        # A page of a mapping that cannot be read is a signal that kills: a disk that fails, a file that is cut under
        # the mapping. In /proc/vmcore neither happens: all pages are there as soon as they are mapped, and read(2)
        # is slow. Everything else is read.
        self._can_map = in_proc

    def _find_pages(self) -> None:
        within = tuple(each for each in self._believed if each.paddr + each.memsz <= self._limit)
        self.extents = _extents(self._believed, self.size, self.page_shift)
        self.holes = _holes(within, self.extents, self.page_shift)

    def use_pages(self, shift: int) -> None:
        """A page of which the file holds only a part is not there."""
        if shift != self.page_shift:
            self.page_shift = shift
            for name in ("max_pfn", "_starts", "_extent_table"):
                self.__dict__.pop(name, None)  # what functools.cached_property remembered
            self._find_pages()

    def close(self) -> None:
        """Gives the file and its mappings back; views that are still held keep their window."""
        for start in list(self._windows):
            self._drop_window(start)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _header_bytes(self, size: int, offset: int) -> bytes:
        """What the file holds there: offsets in headers may be anything."""
        size = min(size, self.size - offset)
        return os.pread(self._fd, size, offset) if offset >= 0 and size > 0 else b""

    # Memory

    def read(self, paddr: int, size: int) -> bytes:
        parts: list[bytes] = []
        shift = self.page_shift
        while size > 0:
            extent = self.extent_at(paddr >> shift)
            if extent is None:
                raise VmcoreError(f"physical address {paddr:#x} is not in {self.path}")
            part = min(size, (extent.end << shift) - paddr)
            data = self._pread(part, extent.offset + paddr - (extent.start << shift))
            parts.append(data)
            paddr += part
            size -= part
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    raise VmcoreError(f"{self.path} ends at {offset + len(data):#x}, inside memory that it should hold")
                data += more
        except OSError as error:
            raise VmcoreError(f"{self.path} cannot be read at {offset:#x}: {os_reason(error)}") from error
        return data

    def view(self, paddr: int, size: int) -> memoryview:
        """Without a copy where one window holds all of it."""
        shift = self.page_shift
        extent = self.extent_at(paddr >> shift)
        if extent is not None and paddr + size <= extent.end << shift:
            offset = extent.offset + paddr - (extent.start << shift)
            window = self._window(offset)
            inside = offset % _WINDOW
            if window is not None and inside + size <= len(window):
                return memoryview(window)[inside : inside + size]
        return memoryview(self.read(paddr, size))

    def read_pages(self, pfns: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Copies the pages of ascending `pfns` into `out`, shape (len(pfns), page_size).

        Returns the positions in `pfns` of pages that could not be read; these are zero in `out`.
        """
        if not len(pfns):
            return pfns
        bad: list[int] = []
        shift = self.page_shift
        offsets = self._offsets(pfns)
        breaks = np.flatnonzero(np.diff(offsets) != 1 << shift) + 1
        room = memoryview(out.reshape(-1))  # type: ignore[arg-type] # numpy's arrays are buffers
        for first, last in itertools.pairwise([0, *ints(breaks), len(pfns)]):
            offset = int(offsets[first])
            if offset >= 0:
                self._read_run(offset, room[first << shift : last << shift], first, bad)
            else:
                out[first:last] = 0
                bad.extend(range(first, last))
        return np.array(bad, dtype=np.int64)

    def _offsets(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the pages lie in the file; -1 for those that it does not hold."""
        if not self.extents:
            return np.full(len(pfns), -1, dtype=np.int64)
        starts, ends, places = self._extent_table
        index = np.searchsorted(starts, pfns, side="right") - 1
        inside = (index >= 0) & (pfns < ends[index])
        return np.where(inside, places[index] + (pfns - starts[index] << self.page_shift), -1)

    @functools.cached_property
    def _extent_table(self) -> tuple[NDArray[np.int64], ...]:
        table = np.array([(each.start, each.end, each.offset) for each in self.extents], dtype=np.int64)
        return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()

    def _read_run(self, offset: int, room: memoryview, position: int, bad: list[int]) -> None:
        """Fills `room` with whole pages from `offset` on; what cannot be read is zeroed, and added to `bad`.

        A read that fails is tried once more for its first page alone, so that each bad page costs only itself.
        """
        shift, page_size = self.page_shift, self.page_size
        done = 0
        alone = False
        while done < len(room):
            window = self._window(offset + done) if self._can_map else None
            if window is not None:
                inside = (offset + done) % _WINDOW
                size = min(len(room) - done, len(window) - inside) >> shift << shift
                if size:
                    room[done : done + size] = memoryview(window)[inside : inside + size]
                    done += size
                    continue
            try:
                count = os.preadv(self._fd, [room[done : done + page_size] if alone else room[done:]], offset + done)
            except OSError:
                count = 0
            whole = count >> shift << shift
            if whole:
                done += whole
                alone = False
            elif alone:
                room[done : done + page_size] = bytes(page_size)
                bad.append(position + (done >> shift))
                done += page_size
                alone = False
            else:
                alone = True

    def _window(self, offset: int) -> mmap.mmap | None:
        """The mapping of the aligned window that holds file `offset`; None where mmap does not work."""
        start = offset - offset % _WINDOW
        window = self._windows.pop(start, None)
        if window is None and self._can_map and offset < self.size:
            if len(self._windows) >= _WINDOWS:
                self._drop_window(next(iter(self._windows)))
            length = min(_WINDOW, self.size - start)
            try:
                window = mmap.mmap(self._fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=start)
            except (OSError, ValueError):
                # s390 and kernels before 3.10 have no mmap of /proc/vmcore: pread does the same, slower.
                self._can_map = False
        if window is not None:
            self._windows[start] = window
        return window

    def _drop_window(self, start: int) -> None:
        window = self._windows.pop(start)
        # A view may still be held: its owner then keeps the mapping alive and frees it.
        with contextlib.suppress(BufferError):
            window.close()


Place = tuple[int, int, int]  # of a segment in the file: start, end, and start less the physical address


def _is_in_proc(fd: int) -> bool:
    try:
        return os.fstat(fd).st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


def _cut_bytes(segments: tuple[Segment, ...], file_size: int) -> int:
    """How many bytes of the segments lie behind the end of the file."""
    return sum(max(0, min(each.filesz, each.offset + each.filesz - file_size)) for each in segments)


def _extents(segments: tuple[Segment, ...], file_size: int, shift: int = PAGE_SHIFT) -> tuple[Extent, ...]:
    """Page extents without overlaps, ascending.

    /proc/vmcore stores whole pages although p_paddr and p_filesz need not be aligned, and maps the kernel's text
    twice, so a page may occur in two PT_LOADs: the first by address wins, both hold the same memory. Whole pages are
    those of the kernel that serves the file: where the dead one had larger ones, what belongs to another segment is
    not taken for the rest of a page.
    """
    page_size = 1 << shift
    places: list[Place] = []
    if shift > PAGE_SHIFT:
        places = sorted((each.offset, each.offset + each.filesz, each.offset - each.paddr) for each in segments)
    extents: list[Extent] = []
    covered = 0
    for segment in sorted(segments, key=lambda each: each.paddr):
        start = segment.paddr >> shift
        end = (segment.paddr + segment.filesz + page_size - 1) >> shift
        lead = segment.paddr % page_size
        behind = segment.offset + segment.filesz
        offset = segment.offset - lead
        base = segment.offset - segment.paddr
        if _is_taken(places, offset, segment.offset, base):
            start += 1
            offset += page_size
        if _is_taken(places, behind, behind + -(segment.paddr + segment.filesz) % page_size, base):
            end -= 1
        if start < covered:
            offset += (covered - start) << shift
            start = covered
        in_file = max(0, file_size - offset) >> shift
        end = min(end, start + in_file)
        if offset >= 0 and start < end:
            extents.append(Extent(start=start, end=end, offset=offset))
            covered = end
    return tuple(extents)


def _is_taken(places: list[Place], start: int, end: int, base: int) -> bool:
    """Whether bytes [start, end) of the file, at least some of them, are of other memory than `base` leads to."""
    before = bisect.bisect_left(places, (end,)) - 1
    return start < end and before >= 0 and places[before][1] > start and places[before][2] != base


def _holes(
    segments: tuple[Segment, ...], extents: tuple[Extent, ...], shift: int = PAGE_SHIFT
) -> tuple[tuple[int, int], ...]:
    """What the segments say was in memory and is not in the file (p_memsz above p_filesz), ascending."""
    holes: list[tuple[int, int]] = []
    after = 0  # the next extent that may lie behind the start of a hole
    covered = 0
    for segment in sorted(segments, key=lambda each: each.paddr + each.filesz):
        start = max(covered, segment.paddr + segment.filesz + (1 << shift) - 1 >> shift)
        end = segment.paddr + segment.memsz >> shift
        while after < len(extents) and extents[after].end <= start:
            after += 1
        at = after
        while start < end:
            inside = at < len(extents) and extents[at].start < end
            if start < (until := extents[at].start if inside else end):
                holes.append((start, until))
            start = extents[at].end if inside else end
            at += 1
        covered = max(covered, end)
    return tuple(holes)
