# SPDX-License-Identifier: GPL-2.0-or-later
"""The ELF core file that /proc/vmcore is: physical memory by page frame.

Knows the file format (linux: fs/proc/vmcore.c, elf(5)), nothing of what the pages mean. All addresses here
are physical. A pfn that no PT_LOAD holds cannot be read; nothing is invented for it.
"""

from __future__ import annotations

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
from kdumpd.vmcore.memory import PAGE_SHIFT, PAGE_SIZE, CrashedMemory, Extent, Segment

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
        self.extents = _extents(believed, self.size)
        self.holes = _holes(tuple(each for each in believed if each.paddr + each.memsz <= limit), self.extents)
        self._windows: dict[int, mmap.mmap] = {}
        # A page of a mapping that cannot be read is a signal that kills: a disk that fails, a file that is cut under
        # the mapping. In /proc/vmcore neither happens: all pages are there as soon as they are mapped, and read(2)
        # is slow. Everything else is read.
        self._can_map = in_proc

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
        while size > 0:
            extent = self.extent_at(paddr >> PAGE_SHIFT)
            if extent is None:
                raise VmcoreError(f"physical address {paddr:#x} is not in {self.path}")
            part = min(size, (extent.end << PAGE_SHIFT) - paddr)
            data = self._pread(part, extent.offset + paddr - (extent.start << PAGE_SHIFT))
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
        extent = self.extent_at(paddr >> PAGE_SHIFT)
        if extent is not None and paddr + size <= extent.end << PAGE_SHIFT:
            offset = extent.offset + paddr - (extent.start << PAGE_SHIFT)
            window = self._window(offset)
            inside = offset % _WINDOW
            if window is not None and inside + size <= len(window):
                return memoryview(window)[inside : inside + size]
        return memoryview(self.read(paddr, size))

    def read_pages(self, pfns: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Copies the pages of ascending `pfns` into `out`, shape (len(pfns), PAGE_SIZE).

        Returns the positions in `pfns` of pages that could not be read; these are zero in `out`.
        """
        if not len(pfns):
            return pfns
        bad: list[int] = []
        offsets = self._offsets(pfns)
        breaks = np.flatnonzero(np.diff(offsets) != PAGE_SIZE) + 1
        room = memoryview(out.reshape(-1))  # type: ignore[arg-type] # numpy's arrays are buffers
        for first, last in itertools.pairwise([0, *ints(breaks), len(pfns)]):
            offset = int(offsets[first])
            if offset >= 0:
                self._read_run(offset, room[first << PAGE_SHIFT : last << PAGE_SHIFT], first, bad)
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
        return np.where(inside, places[index] + (pfns - starts[index] << PAGE_SHIFT), -1)

    @functools.cached_property
    def _extent_table(self) -> tuple[NDArray[np.int64], ...]:
        table = np.array([(each.start, each.end, each.offset) for each in self.extents], dtype=np.int64)
        return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()

    def _read_run(self, offset: int, room: memoryview, position: int, bad: list[int]) -> None:
        """Fills `room` with whole pages from `offset` on; what cannot be read is zeroed, and added to `bad`.

        A read that fails is tried once more for its first page alone, so that each bad page costs only itself.
        """
        done = 0
        alone = False
        while done < len(room):
            window = self._window(offset + done) if self._can_map else None
            if window is not None:
                inside = (offset + done) % _WINDOW
                size = min(len(room) - done, len(window) - inside) >> PAGE_SHIFT << PAGE_SHIFT
                if size:
                    room[done : done + size] = memoryview(window)[inside : inside + size]
                    done += size
                    continue
            try:
                count = os.preadv(self._fd, [room[done : done + PAGE_SIZE] if alone else room[done:]], offset + done)
            except OSError:
                count = 0
            whole = count >> PAGE_SHIFT << PAGE_SHIFT
            if whole:
                done += whole
                alone = False
            elif alone:
                room[done : done + PAGE_SIZE] = bytes(PAGE_SIZE)
                bad.append(position + (done >> PAGE_SHIFT))
                done += PAGE_SIZE
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


def _is_in_proc(fd: int) -> bool:
    try:
        return os.fstat(fd).st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


def _cut_bytes(segments: tuple[Segment, ...], file_size: int) -> int:
    """How many bytes of the segments lie behind the end of the file."""
    return sum(max(0, min(each.filesz, each.offset + each.filesz - file_size)) for each in segments)


def _extents(segments: tuple[Segment, ...], file_size: int) -> tuple[Extent, ...]:
    """Page extents without overlaps, ascending.

    /proc/vmcore stores whole pages although p_paddr and p_filesz need not be aligned, and maps the kernel's text
    twice, so a page may occur in two PT_LOADs: the first by address wins, both hold the same memory.
    """
    extents: list[Extent] = []
    covered = 0
    for segment in sorted(segments, key=lambda each: each.paddr):
        start = segment.paddr >> PAGE_SHIFT
        end = (segment.paddr + segment.filesz + PAGE_SIZE - 1) >> PAGE_SHIFT
        offset = segment.offset - segment.paddr % PAGE_SIZE
        if start < covered:
            offset += (covered - start) << PAGE_SHIFT
            start = covered
        in_file = max(0, file_size - offset) >> PAGE_SHIFT
        end = min(end, start + in_file)
        if offset >= 0 and start < end:
            extents.append(Extent(start=start, end=end, offset=offset))
            covered = end
    return tuple(extents)


def _holes(segments: tuple[Segment, ...], extents: tuple[Extent, ...]) -> tuple[tuple[int, int], ...]:
    """What the segments say was in memory and is not in the file (p_memsz above p_filesz), ascending."""
    holes: list[tuple[int, int]] = []
    after = 0  # the next extent that may lie behind the start of a hole
    covered = 0
    for segment in sorted(segments, key=lambda each: each.paddr + each.filesz):
        start = max(covered, segment.paddr + segment.filesz + PAGE_SIZE - 1 >> PAGE_SHIFT)
        end = segment.paddr + segment.memsz >> PAGE_SHIFT
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
