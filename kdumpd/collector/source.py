# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that is known of one crash before a page is copied, and what could not be learned.

Opening never fails for a detail: each step that does not work is noted with its reason, and the next wider one is
taken: filtered, then everything, then the log alone.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from kdumpd.dumpfile.diskdump import SIGNATURE, Utsname
from kdumpd.dumpfile.flattened import SIGNATURE as FLATTENED
from kdumpd.dumpfile.manifest import Step
from kdumpd.dumpfile.stored import is_encrypted
from kdumpd.dumpfile.writer import Origin
from kdumpd.errors import VmcoreError, os_reason
from kdumpd.vmcore.arrays import NDArray, count_bits, unique
from kdumpd.vmcore.classify import Classification, NewBitmap, classify, in_memory, keep_all
from kdumpd.vmcore.critical import Stage, critical_stages, must_keep
from kdumpd.vmcore.crosscheck import agreed
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.kernel_facts import KernelFacts, find_facts
from kdumpd.vmcore.kernel_log import read_log
from kdumpd.vmcore.log_clear import clear_sequence
from kdumpd.vmcore.machines import page_shift, page_tables
from kdumpd.vmcore.memmap import MemoryMap
from kdumpd.vmcore.memory import CrashedMemory, Segment
from kdumpd.vmcore.rules import PageClass, rules_of
from kdumpd.vmcore.translate import PageTables
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

_UTS_SIZE = 6 * 65
_UTS_NAME_AT = 4
FAULT = "by a fault of kdumpd"


def open_memory(path: Path) -> CrashedMemory:
    """Whatever kind of file `path` is, by how it begins. Raises VmcoreError."""
    try:
        with path.open("rb", buffering=0) as file:
            start = file.read(32)
    except OSError as error:
        raise VmcoreError(f"{path} cannot be opened: {os_reason(error)}") from error
    if start.startswith((SIGNATURE, FLATTENED)):
        from kdumpd.dumpfile.dumped import DumpedMemory

        return DumpedMemory(path)
    if is_encrypted(start):
        raise VmcoreError(f"{path} is encrypted", hint=f"kdumpctl decrypt {path} comes first")
    try:
        return ElfCore(path)  # which also knows a core by its notes
    except VmcoreError as error:
        if start and not start.startswith(b"\x7fELF"):
            raise VmcoreError(f"{path} is neither an ELF core file nor a kdump-compressed dump") from error
        raise


@dataclasses.dataclass(slots=True, kw_only=True)
class Source:
    """An open vmcore with its page tables (None when they cannot be read). `notes` grows as steps fail, `steps` as
    the work goes another way than asked for. `needed` are pages without which nothing opens a dump, as far as they
    are known: from the first `classify` on. `new_bitmap` makes the bitmaps for `classify`."""

    core: CrashedMemory
    info: Vmcoreinfo
    tables: PageTables | None
    notes: list[str]
    steps: list[Step] = dataclasses.field(default_factory=list)
    new_bitmap: NewBitmap = in_memory
    needed: Mapping[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    _facts: KernelFacts | None = None
    _looked_for_facts: bool = False

    @classmethod
    def open(cls, path: Path, vmlinux: Path | None = None) -> Source:
        """Raises VmcoreError only when `path` is neither a core file of memory nor a dump, KdumpError when a
        `vmlinux` is given and cannot be used."""
        core = open_memory(path)
        try:
            return cls._of(core, vmlinux)
        except BaseException:
            core.close()
            raise

    @classmethod
    def _of(cls, core: CrashedMemory, vmlinux: Path | None) -> Source:
        notes: list[str] = list(core.doubts)
        note = core.vmcoreinfo_note()
        if note is None:
            from kdumpd.vmcore.find_info import find_note

            found = find_note(core)
            if found is None:
                notes.append("there is no VMCOREINFO note")
            else:
                notes.append("VMCOREINFO was found in the memory itself, as there is no note of it")
                core.notes_block += found
                note = core.vmcoreinfo_note()
        info = parse_vmcoreinfo(note.description if note is not None else b"")
        notes.extend(f"VMCOREINFO has a line that makes no sense: {line[:80]}" for line in info.bad_lines[:8])
        if vmlinux is not None:
            from kdumpd.collector.vmlinux import completed

            info = completed(info, vmlinux, notes)
        tables = None
        shift = page_shift(core, info, notes)
        core.use_pages(shift)
        try:
            tables = page_tables(core, info, shift)
            if vmlinux is not None:
                from kdumpd.collector.vmlinux import with_root

                info = with_root(info, tables)
        except VmcoreError as error:
            notes.append(f"the page tables cannot be read: {error}")
        return cls(core=core, info=info, tables=tables, notes=notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.core.close()

    def log_lines(self, *, since_clear: bool = False) -> list[str]:
        """The kernel log; empty, with a note, when there is none to be had. `since_clear` leaves out what was there
        when it was last cleared (dmesg -C)."""
        if self.tables is None:
            return []
        lines: list[str] = []
        try:
            first = clear_sequence(self.tables, self.info) if since_clear else 0
            for record in read_log(self.tables, self.info):
                if record.sequence >= first:
                    lines.extend(record.lines())
        except VmcoreError as error:
            self.notes.append(f"the kernel log cannot be read: {error}")
        except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
            self.notes.append(f"the kernel log is incomplete, {FAULT}: {error!r}")
        return lines

    def segments(self) -> tuple[Segment, ...]:
        """The memory as program headers describe it; made up of what is known where the file has none."""
        if self.core.segments:
            return self.core.segments
        base, shift = self._direct_map(), self.core.page_shift
        return tuple(
            Segment(
                vaddr=base + (extent.start << shift) if base is not None else 0,
                paddr=extent.start << shift,
                offset=0,
                filesz=extent.end - extent.start << shift,
                memsz=extent.end - extent.start << shift,
            )
            for extent in self.core.extents
        )

    def _direct_map(self) -> int | None:
        """The virtual address of physical 0: mem_section points into the direct map, and is translated like any."""
        symbol = self.info.symbol("mem_section")
        if self.tables is None or symbol is None:
            return None
        try:
            pointer = self.tables.read_u64(symbol)
            paddr = self.tables.to_phys(pointer)
        except VmcoreError:
            return None
        # Whatever its base, the direct map begins at a boundary that a table of the second level covers; with pages of
        # 64 KiB one of the last (linux: arch/arm64/mm/init.c, ARM64_MEMSTART_ALIGN).
        align = 1 << (29 if self.tables.page_shift == 16 else 30)
        return pointer - paddr if paddr is not None and not (pointer - paddr) % align else None

    def utsname(self) -> Utsname:
        """init_uts_ns of the dead kernel; with only the release from VMCOREINFO where it cannot be read."""
        symbol = self.info.symbol("init_uts_ns")
        offset = self.info.offset("uts_namespace.name")
        # Exported since 5.11 (ca4a9241cc5e); a reference count stood before the name until 5.10.
        places = (_UTS_NAME_AT, 0) if offset is None else (offset,)
        if self.tables is not None and symbol is not None:
            try:
                for place in places:
                    name = Utsname.from_bytes(self.tables.read(symbol + place, _UTS_SIZE))
                    if name.sysname == "Linux":
                        return name
                self.notes.append("the name of the kernel is not where it should be: init_uts_ns is damaged")
            except VmcoreError as error:
                self.notes.append(f"the name of the kernel cannot be read: {error}")
        return Utsname(release=self.info.release or "", machine=self.core.machine)

    def origin(self) -> Origin:
        """What the headers of the dump say."""
        note = self.core.vmcoreinfo_note()
        return Origin(
            utsname=self.utsname(),
            time_sec=self.info.crash_time or int(time.time()),
            nr_cpus=self.core.nr_cpus(),
            phys_base=self.tables.phys_base if self.tables is not None else self.core.phys_base,
            notes=self.core.notes_block,
            vmcoreinfo_at=note.offset if note is not None else 0,
            vmcoreinfo_size=len(note.description) if note is not None else 0,
        )

    def facts(self) -> KernelFacts | None:
        """What is known of the kernel's structures; looked for when first asked for."""
        if not self._looked_for_facts and self.tables is not None:
            self._looked_for_facts = True
            try:
                self._facts = find_facts(self.tables, self.info, self.notes)
            except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
                self.notes.append(f"the kernel's structures are not known, {FAULT}: {error!r}")
        return self._facts

    def classify(self, level: int) -> Classification:
        """Which pages to keep at `level`; all of them, with a note, where the memory map cannot be understood. What
        a dump left out before stays left out."""
        found = self._classify(level)
        self.core.leave_out(found.kept)
        kept_count = count_bits(found.kept)
        if kept_count < found.kept_count:
            self.notes.append(f"{found.kept_count - kept_count} pages were left out before, in {self.core.path}")
        return dataclasses.replace(found, kept_count=kept_count)

    def _classify(self, level: int) -> Classification:
        if self.tables is None:
            return self._everything("without page tables the memory map cannot be found")
        if (odd := self._odd_blocks()) is not None:
            return self._everything(odd)
        try:
            return self._guarded(level, self.tables)
        except VmcoreError as error:
            return self._everything(str(error))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A value that no check foresaw must cost the filter, not the dump.
            return self._everything(f"{FAULT}: {error!r}")

    def _odd_blocks(self) -> str | None:
        """Why page frames of the file are not those of the kernel; None when they are."""
        if self.tables is None or self.core.page_shift == self.tables.page_shift:
            return None
        # QEMU writes blocks of 64 KiB for every arm64 guest (target/arm/arch_dump.c).
        return f"{self.core.path} has blocks of {self.core.page_size} bytes, pages have {self.tables.page_size}"

    def _everything(self, reason: str) -> Classification:
        self.notes.append(f"nothing is left out: {reason}")
        self.steps.append(Step("everything", reason))
        return keep_all(self.core, self.new_bitmap)

    def _guarded(self, level: int, tables: PageTables) -> Classification:
        """Rules that leave out a page without which nothing opens the dump are wrong for this memory: they go off."""
        info = agreed(self.info, self.facts(), self.notes)
        rules = rules_of(info)
        self.notes.extend(rules.missing)
        memory_map = MemoryMap(self.core, info, tables)
        self.needed = needed = must_keep(self.core, self.info, tables, self.facts(), self.notes)
        watched = unique(np.concatenate([np.zeros(0, dtype=np.int64), *needed.values()]))
        off: set[PageClass] = set()
        while True:
            found = classify(self.core, memory_map, rules, level, off=off, watched=watched, new_bitmap=self.new_bitmap)
            wrong = set(found.lost.values()) - off
            if not found.lost or not wrong:
                break
            off |= wrong
            for page_class in sorted(wrong):
                pfn = min(each for each, its in found.lost.items() if its is page_class)
                what = next(name for name, pfns in needed.items() if pfn in pfns)
                self.steps.append(
                    Step(
                        "less-filtered",
                        f"the rule for {page_class.name.lower()} pages is off: it would leave out pfn {pfn:#x}, "
                        f"a page of the {what}",
                    )
                )
                self.notes.append(self.steps[-1].reason)
        if found.lost:
            return self._everything(f"pfn {min(found.lost):#x} must not be left out and would be, by every rule")
        return found

    def stages(self) -> Iterator[Stage]:
        """What an analyst needs first, the most important first; found while it is asked for."""
        if self.tables is None:
            self.notes.append("pages are saved in the order of their addresses: there are no page tables to go by")
            return
        if (odd := self._odd_blocks()) is not None:
            self.notes.append(f"pages are saved in the order of their addresses: {odd}")
            return
        yield from critical_stages(self.core, self.info, self.tables, self.facts(), self.notes)
