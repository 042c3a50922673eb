# SPDX-License-Identifier: GPL-2.0-or-later
"""The vectorised rules against the same rules written as a walk over single pages."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from fake_kernel import FOLIO, MIDDLE, NEW, OFFSETS, OLD, PAGES, FakeKernel

from kdumpd.vmcore.arrays import count_bits
from kdumpd.vmcore.classify import classify, keep_all
from kdumpd.vmcore.elfcore import ElfCore
from kdumpd.vmcore.memmap import MemoryMap
from kdumpd.vmcore.rules import rules_of
from kdumpd.vmcore.vmcoreinfo import parse_vmcoreinfo
from kdumpd.vmcore.x86_64 import X86PageTables

ERAS = {"old": OLD, "folio": FOLIO, "middle": MIDDLE, "new": NEW}


def excluded(kernel: FakeKernel, path: Path, level: int, ranges: list[tuple[int, int]] | None = None) -> set[int]:
    """The page frames that the classification leaves out."""
    kernel.write(path, ranges)
    with ElfCore(path) as core:
        note = core.vmcoreinfo_note()
        assert note is not None
        info = parse_vmcoreinfo(note.description)
        memory_map = MemoryMap(core, info, X86PageTables(core, info))
        found = classify(core, memory_map, rules_of(info), level)
        dropped = found.present & ~found.kept
        assert found.kept_count == count_bits(found.kept)
        assert sum(found.counts.values()) == found.total - found.kept_count
        return set(np.flatnonzero(np.unpackbits(dropped, bitorder="little")).tolist())


def walk(kernel: FakeKernel, keys: dict[str, int], level: int) -> set[int]:
    """The rule table of the format's description, a page at a time, first match wins."""

    def number(name: str) -> int | None:
        return keys.get(f"NUMBER({name})")

    def same(mapcount: int, name: str) -> bool:
        value = number(name)
        return value is not None and mapcount == value & 0xFFFFFFFF

    words = kernel.pages.view(np.uint32)
    octets = kernel.pages.view(np.uint8)
    out: set[int] = set()
    pfn = 0
    while pfn < PAGES:
        flags = int(kernel.pages[pfn, 0])
        mapping = int(kernel.pages[pfn, OFFSETS["mapping"] // 8])
        private = int(kernel.pages[pfn, OFFSETS["private"] // 8])
        mapcount = int(words[pfn, OFFSETS["_mapcount"] // 4])
        if int(kernel.pages[pfn, 1]) & 1:
            pfn += 1
            continue

        def bit(name: str, flags: int = flags) -> bool:
            where = number(name)
            return where is not None and bool(flags >> where & 1)

        order, hugetlb = 0, same(mapcount, "PAGE_HUGETLB_MAPCOUNT_VALUE")
        if flags & (number("PG_head_mask") or 0) and pfn + 1 < PAGES:
            if "OFFSET(page.compound_order)" in keys or "OFFSET(folio._folio_order)" in keys:
                order = int(octets[pfn + 1, 17])
                hugetlb = int(octets[pfn + 1, 16]) == number("HUGETLB_PAGE_DTOR")
            else:
                order = int(octets[pfn + 1, 0])
                if number("PG_hugetlb") is not None:
                    hugetlb = bool(int(kernel.pages[pfn + 1, 0]) >> (number("PG_hugetlb") or 0) & 1)
            if order >= 64 or pfn % (1 << order):
                order = 0
        slab = same(mapcount, "PAGE_SLAB_MAPCOUNT_VALUE") or bit("PG_slab")
        anon = bool(mapping & 1) and not slab
        cache = bit("PG_lru") or (bit("PG_swapcache") and bit("PG_swapbacked"))
        span = 0
        if level & 16 and not slab and same(mapcount, "PAGE_BUDDY_MAPCOUNT_VALUE") and "LENGTH(zone.free_area)" in keys:
            span = 1 << private if private < keys.get("LENGTH(zone.free_area)", 0) else 0
        elif level & 16 and same(mapcount, "PAGE_UNACCEPTED_MAPCOUNT_VALUE"):
            span = 1 << (keys["LENGTH(zone.free_area)"] - 1)
        elif (
            (level & 2 and cache and not bit("PG_private") and not anon)
            or (level & 4 and cache and not anon)
            or (level & 8 and (anon or hugetlb))
            or bit("PG_hwpoison")
        ) or (not slab and same(mapcount, "PAGE_OFFLINE_MAPCOUNT_VALUE")):
            span = 1 << order
        out.update(range(pfn, min(PAGES, pfn + span)))
        pfn += max(1, span)
    return out


def scramble(kernel: FakeKernel, keys: dict[str, int], seed: int) -> None:
    """Struct pages with all that occurs, in combinations that mostly do not."""
    random = np.random.default_rng(seed)
    flags = np.zeros(PAGES, dtype=np.uint64)
    for name, chance in [
        ("PG_lru", 0.3), ("PG_private", 0.2), ("PG_swapcache", 0.1), ("PG_swapbacked", 0.3), ("PG_slab", 0.1),
        ("PG_hwpoison", 0.01),
    ]:  # fmt: skip
        bit = keys.get(f"NUMBER({name})")
        if bit is not None:
            flags |= (random.random(PAGES) < chance).astype(np.uint64) << np.uint64(bit)
    kernel.pages[:, 0] = flags
    kernel.pages[:, OFFSETS["mapping"] // 8] = random.integers(0, 4, PAGES).astype(np.uint64)
    types = [value & 0xFFFFFFFF for key, value in keys.items() if "MAPCOUNT_VALUE" in key] + [0xFFFFFFFF] * 4 + [0, 1]
    kernel.pages.view(np.uint32)[:, OFFSETS["_mapcount"] // 4] = random.choice(np.array(types, dtype=np.uint32), PAGES)
    kernel.pages[:, OFFSETS["private"] // 8] = random.choice(
        np.array([0, 0, 0, 1, 2, 3, 10, 11, 1 << 40], dtype=np.uint64), PAGES
    )
    pfn = 0
    while pfn < PAGES:
        if random.random() < 0.1:
            order = int(random.choice([1, 2, 3, 4, 9, 11]))
            if pfn % (1 << order) == 0 and pfn + (1 << order) <= PAGES:
                kernel.pages[pfn, 0] |= np.uint64(keys["NUMBER(PG_head_mask)"])
                kernel.pages[pfn, 1] = 0
                kernel.pages[pfn + 1 : pfn + (1 << order), 1] = 0xFFFFEA0000000001
                wrong = random.random() < 0.1
                kernel.pages.view(np.uint8)[pfn + 1, 17] = 70 if wrong else order
                kernel.pages[pfn + 1, 0] = (int(kernel.pages[pfn + 1, 0]) & ~0xFF) | (70 if wrong else order)
                is_hugetlb = random.random() < 0.3
                # On 6.1 the destructor is the third byte of the second page's compound words.
                kernel.pages.view(np.uint8)[pfn + 1, 16] = 2 if is_hugetlb else 1
                if "NUMBER(PG_hugetlb)" in keys and is_hugetlb:
                    kernel.pages[pfn + 1, 0] |= np.uint64(1 << keys["NUMBER(PG_hugetlb)"])
                pfn += 1 << order
                continue
        pfn += 1


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("seed", range(6))
def test_the_vectorised_rules_are_the_walk(era: str, seed: int, tmp_path: Path) -> None:
    keys = ERAS[era]
    kernel = FakeKernel(keys, levels=4 + seed % 2)
    scramble(kernel, keys, seed)
    for level in (0, 1, 2, 4, 6, 8, 16, 24, 31):
        assert excluded(kernel, tmp_path / "core", level) == walk(kernel, keys, level), level


@pytest.mark.parametrize("model", ["without_vmemmap", "with_static_sections", "with_flat_map"])
def test_other_memory_models(model: str, tmp_path: Path) -> None:
    """No kernel that Debian builds for these machines has them."""
    kernel = FakeKernel(NEW)
    getattr(kernel, model)()
    scramble(kernel, NEW, 3)
    for level in (2, 8, 16, 31):
        assert excluded(kernel, tmp_path / "core", level) == walk(kernel, NEW, level), level


def test_a_page_without_readable_struct_page_is_kept(tmp_path: Path) -> None:
    kernel = FakeKernel(OLD)
    kernel.pages[:, 0] = 1 << 4  # everything is page cache
    assert len(excluded(kernel, tmp_path / "core", 2)) == PAGES
    lost = kernel.memmap_frames[5] // 4096  # struct pages of pfns 320 to 383
    out = excluded(kernel, tmp_path / "core", 2, [(0, lost), (lost + 1, PAGES)])
    assert out == set(range(PAGES)) - set(range(320, 384)) - {lost}


def test_a_gigantic_page_reaches_over_sections(tmp_path: Path) -> None:
    kernel = FakeKernel(NEW)
    kernel.pages[0, 0] = 1 << 16 | 1 << 4
    kernel.pages[1:2048, 1] = 1
    kernel.pages[1, 0] = 11
    assert excluded(kernel, tmp_path / "core", 2) == set(range(2048))


def test_a_free_order_that_no_list_has_keeps_the_page(tmp_path: Path) -> None:
    kernel = FakeKernel(OLD)
    kernel.pages.view(np.uint32)[:, 12] = ~0x80 & 0xFFFFFFFF
    kernel.pages[:, 5] = 11
    kernel.pages[16, 5] = 4
    assert excluded(kernel, tmp_path / "core", 16) == set(range(16, 32))


@pytest.mark.parametrize("key", [key for key in OLD if "head_mask" not in key])
def test_a_missing_key_never_drops_a_page_more(key: str, tmp_path: Path) -> None:
    kernel = FakeKernel(OLD)
    scramble(kernel, OLD, 7)
    kernel.missing = {key}
    remaining = {name: value for name, value in OLD.items() if name != key}
    # What is dropped is what the remaining rules show to be free, cache or user data; no rule guesses.
    assert excluded(kernel, tmp_path / "core", 31) <= walk(kernel, remaining, 31)


def test_a_hugetlb_value_of_zero_drops_no_other_compound_page(tmp_path: Path) -> None:
    kernel = FakeKernel({**OLD, "NUMBER(HUGETLB_PAGE_DTOR)": 0})
    kernel.pages[0, 0] = 1 << 16
    kernel.pages[1:8, 1] = 1
    kernel.pages.view(np.uint8)[1, 17] = 3
    assert excluded(kernel, tmp_path / "core", 31) == set()


def test_the_preinit_flag_of_a_section_is_no_address(tmp_path: Path) -> None:
    kernel = FakeKernel(NEW, flags_in_section=0x3F)
    kernel.pages[100, 0] = 1 << 4
    assert excluded(kernel, tmp_path / "core", 2) == {100}


def test_keep_all(tmp_path: Path) -> None:
    with ElfCore(FakeKernel(OLD).write(tmp_path / "core", [(1, 3), (9, 77)])) as core:
        found = keep_all(core)
        assert (found.total, found.kept_count) == (70, 70)
        assert np.flatnonzero(np.unpackbits(found.kept, bitorder="little")).tolist() == [1, 2, *range(9, 77)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("era", list(ERAS))
def test_large_free_blocks_hide_what_is_in_them_and_nothing_else(era: str, seed: int, tmp_path: Path) -> None:
    """Free blocks of the highest order, right, misaligned, of another order, or inside a larger page."""
    chance = random.Random(seed)
    kernel = FakeKernel(ERAS[era])
    words = kernel.pages.view(np.uint32)
    buddy = ERAS[era]["NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)"] & 0xFFFFFFFF
    for pfn in range(0, PAGES, 256):  # stale struct pages everywhere
        kernel.pages[pfn : pfn + 256, 0] = chance.choice([0, 1 << 4, 1 << 4 | 1 << 13])
        kernel.pages[pfn : pfn + 256, OFFSETS["mapping"] // 8] = chance.choice([0, 1])
    for pfn in (0, 1024, 2048, 3072, 512, 1536):
        if chance.random() < 0.7:
            words[pfn, OFFSETS["_mapcount"] // 4] = buddy
            kernel.pages[pfn, 0] = chance.choice([0, 0, 0, 1 << 9])
            kernel.pages[pfn, OFFSETS["private"] // 8] = chance.choice([10, 10, 10, 9, 11])
    for level in (31, 16, 8):
        assert excluded(kernel, tmp_path / "core", level) == walk(kernel, ERAS[era], level)
