# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages to keep: one pass over the memory map, a section at a time, without a loop over pages.

Bitmaps here are numpy uint8 arrays, one bit a pfn, the lowest pfn in the lowest bit, as in the dump format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

import numpy as np

from kdumpd.vmcore.arrays import NDArray, count_bits, ints
from kdumpd.vmcore.memmap import MemoryMap
from kdumpd.vmcore.memory import CrashedMemory, fill_range
from kdumpd.vmcore.rules import Level, PageClass, Rules

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
_HEAD_ORDER_LIMIT = 64
NewBitmap = Callable[[int], Bytes]
"""Makes a bitmap of so many bytes, all zero."""
_Member = TypeVar("_Member", np.uint8, np.uint32, np.uint64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """`present`: pages that the core holds. `kept`: those of them to write. `slab`: pages of the slab allocators,
    whether kept or not. `counts`: pages per class. `lost`: those of the watched pages that are left out, and as what.

    The counts of the classes and of `kept` add up to `total`; zero pages are found later, while writing.
    """

    present: Bytes
    kept: Bytes
    slab: Bytes
    total: int
    kept_count: int
    counts: Mapping[PageClass, int]
    lost: Mapping[int, PageClass] = dataclasses.field(default_factory=dict)


def in_memory(size: int) -> Bytes:
    """A bitmap in the memory of this process."""
    return np.zeros(size, dtype=np.uint8)


def present_bitmap(core: CrashedMemory, new_bitmap: NewBitmap = in_memory) -> Bytes:
    """One bit for each page frame below `core.max_pfn` that the machine had, as far as the core tells."""
    bits = new_bitmap(-(-core.max_pfn // 8))
    for start, end in (*((each.start, each.end) for each in core.extents), *core.holes):
        fill_range(bits, start, end)
    return bits


def copy_bits(source: Bytes, target: Bytes) -> None:
    """Copies a bitmap into one that is all zero; what is zero is not touched, so that it takes no memory."""
    step = 1 << 16
    for at in range(0, len(source), step):
        part = source[at : at + step]
        if part.any():
            target[at : at + step] = part


def keep_all(core: CrashedMemory, new_bitmap: NewBitmap = in_memory) -> Classification:
    """The classification that leaves nothing out: for -d 0 and for when there is no memory map to go by."""
    present = present_bitmap(core, new_bitmap)
    kept, slab = new_bitmap(len(present)), new_bitmap(len(present))
    copy_bits(present, kept)
    total = count_bits(present)
    return Classification(present=present, kept=kept, slab=slab, total=total, kept_count=total, counts={})


@dataclasses.dataclass(slots=True)
class _Carry:
    """A range that reaches beyond the block in which it began, e.g. a gigantic page."""

    until: int = 0
    page_class: PageClass = PageClass.KERNEL


def classify(
    core: CrashedMemory,
    memory_map: MemoryMap,
    rules: Rules,
    level: int,
    *,
    off: Collection[PageClass] = (),
    watched: NDArray[np.int64] | None = None,
    new_bitmap: NewBitmap = in_memory,
) -> Classification:
    """Applies `rules` for dump level `level` (0 to 31) to every page of the memory map.

    A page without a readable struct page is kept. The rules for the classes `off` are not applied. `watched` are
    ascending pfns of which the result tells by what rule they are left out.
    """
    present = present_bitmap(core, new_bitmap)
    kept, slab = new_bitmap(len(present)), new_bitmap(len(present))
    copy_bits(present, kept)
    total = count_bits(present)
    counts = np.zeros(len(PageClass), dtype=np.int64)
    carry = _Carry()
    lost: dict[int, PageClass] = {}
    for piece, data in memory_map.blocks():
        end = min(piece.start_pfn + piece.count, core.max_pfn)
        count = end - piece.start_pfn
        if count <= 0:
            continue
        for first, last, is_free in _segments(data, piece.start_pfn, count, rules, level, off):
            start = piece.start_pfn + first
            if carry.until <= start:
                carry = _Carry()
                if is_free:
                    _drop_free(start, start + last - first, present, kept, counts)
                    if watched is not None:
                        lost.update((pfn, PageClass.FREE) for pfn in _between(watched, start, start + last - first))
                    continue
            part = data[first * rules.size_of_page : last * rules.size_of_page]
            classes, is_slab = _classify_block(part, start, last - first, rules, level, carry, off)
            if watched is not None:
                for pfn in _between(watched, start, start + last - first):
                    if classes[pfn - start]:
                        lost[pfn] = PageClass(int(classes[pfn - start]))
            _apply(start, classes, present, kept, counts)
            _mark(slab, start, is_slab)
    kept_count = count_bits(kept)
    return Classification(
        present=present,
        kept=kept,
        slab=slab,
        total=total,
        kept_count=kept_count,
        counts={each: int(counts[each]) for each in PageClass if each is not PageClass.KERNEL},
        lost=lost,
    )


def _between(pfns: NDArray[np.int64], start: int, end: int) -> list[int]:
    return ints(pfns[slice(*np.searchsorted(pfns, (start, end)))])


def _segments(
    data: Bytes, start: int, count: int, rules: Rules, level: int, off: Collection[PageClass]
) -> Iterator[tuple[int, int, bool]]:
    """Parts [first, last) of a block of `count` struct pages, each with whether it consists of free blocks of the
    highest order. Of these only the head is looked at: most of an idle machine is such."""
    size = 1 << max(0, rules.max_order - 1)
    if not level & Level.FREE or rules.buddy_type is None or PageClass.FREE in off or size % 8:
        yield 0, count, False
        return
    block = _Block(data[: count * rules.size_of_page], count, rules)
    heads = np.arange(-start % size, count - size + 1, size)
    free = block.mapcount[heads] == np.uint32(rules.buddy_type)
    free &= block.u64(rules.private)[heads] == np.uint64(rules.max_order - 1)
    free &= (block.u64(rules.compound_head)[heads] & np.uint64(1)) == 0
    if rules.slab_type is None and rules.slab_mask is not None:
        free &= (block.flags[heads] & np.uint64(rules.slab_mask)) == 0
    done = 0
    edges = np.flatnonzero(np.diff(free.astype(np.int8), prepend=0, append=0))
    for first, last in zip(ints(edges[::2]), ints(edges[1::2]), strict=True):
        begin = int(heads[first])
        if begin > done:
            yield done, begin, False
        done = begin + (last - first) * size
        yield begin, done, True
    if done < count:
        yield done, count, False


def _drop_free(start: int, end: int, present: Bytes, kept: Bytes, counts: NDArray[np.int64]) -> None:
    """As `_apply` for pages that are all free; `start` and `end` are multiples of 8."""
    here = slice(start >> 3, end >> 3)
    counts[PageClass.FREE] += count_bits(present[here])
    kept[here] = 0


def _apply(start: int, classes: Bytes, present: Bytes, kept: Bytes, counts: NDArray[np.int64]) -> None:
    """Clears the classified pages of one block in `kept` and counts those that the core holds."""
    first = start >> 3
    lead = start & 7  # struct pages after a hole may begin at any pfn
    if lead:
        classes = np.concatenate((np.zeros(lead, dtype=np.uint8), classes))
    here = slice(first, first + -(-len(classes) // 8))
    held = np.unpackbits(present[here], bitorder="little")[: len(classes)]
    counts += np.bincount(classes * held, minlength=len(PageClass))
    drop = np.packbits(classes != PageClass.KERNEL, bitorder="little")
    kept[here] &= ~drop


class _Block:
    """The columns of one block of struct pages, read where they lie (strided views, no copies)."""

    def __init__(self, data: Bytes, count: int, rules: Rules) -> None:
        self._data = data
        self._stride = rules.size_of_page
        self.count = count
        self.flags = self.u64(rules.flags)
        self.mapcount = self._column(rules.mapcount, np.uint32)
        self.mapping = self.u64(rules.mapping)

    def _column(self, offset: int, dtype: type[_Member]) -> NDArray[_Member]:
        return np.ndarray((self.count,), dtype=dtype, buffer=self._data, offset=offset, strides=(self._stride,))

    def u64(self, offset: int) -> NDArray[np.uint64]:
        """The unsigned long at `offset` of every struct page."""
        return self._column(offset, np.uint64)

    def u8(self, offset: int) -> NDArray[np.uint8]:
        """The byte at `offset` of every struct page."""
        return self._column(offset, np.uint8)

    def has(self, mask: int | None) -> Flags:
        """Pages with any of the flag bits of `mask`; none when the bit is not known."""
        if mask is None:
            return np.zeros(self.count, dtype=np.bool_)
        found: Flags = np.not_equal(self.flags & np.uint64(mask), 0)
        return found

    def is_type(self, value: int | None) -> Flags:
        """Pages of a page type. All 32 bits are compared: the type's values are no masks."""
        if value is None:
            return np.zeros(self.count, dtype=np.bool_)
        return np.equal(self.mapcount, np.uint32(value))


def _orders(block: _Block, heads: NDArray[np.int64], start: int, rules: Rules) -> NDArray[np.int64]:
    """The order of each compound page of `heads`; 0 where it makes no sense."""
    if rules.order_at is None or not len(heads):
        return np.zeros(len(heads), dtype=np.int64)
    column = block.u8(rules.order_at)
    # A head is aligned to at least 2, so it is never the last of a block of an even number of pages.
    second = np.minimum(heads + 1, block.count - 1)
    orders: NDArray[np.int64] = column[second].astype(np.int64)
    orders[(heads + 1 >= block.count) | (orders >= _HEAD_ORDER_LIMIT)] = 0
    aligned = ((heads + start) & ((np.int64(1) << np.minimum(orders, 62)) - 1)) == 0
    orders[~aligned] = 0
    return orders


def _hugetlb(block: _Block, heads: NDArray[np.int64], rules: Rules) -> Flags:
    """Pages that are the head of a hugetlb page."""
    if rules.hugetlb_type is not None:
        return block.is_type(rules.hugetlb_type)
    found = np.zeros(block.count, dtype=np.bool_)
    heads = heads[heads + 1 < block.count]
    if rules.hugetlb_mask is not None:
        found[heads] = (block.flags[heads + 1] & np.uint64(rules.hugetlb_mask)) != 0
    elif rules.hugetlb_dtor_at is not None and rules.hugetlb_dtor:
        # Destructor 0 is NULL_COMPOUND_DTOR, which every other page has: a hugetlb value of 0 is a damaged note.
        found[heads] = block.u8(rules.hugetlb_dtor_at)[heads + 1] == np.uint8(rules.hugetlb_dtor & 0xFF)
    return found


def _mark(bits: Bytes, start: int, marked: Flags) -> None:
    """Sets the bits of the pages of one block that are `marked`."""
    lead = start & 7
    if lead:
        marked = np.concatenate((np.zeros(lead, dtype=np.bool_), marked))
    first = start >> 3
    bits[first : first + -(-len(marked) // 8)] |= np.packbits(marked, bitorder="little")


def _classify_block(
    data: Bytes, start: int, count: int, rules: Rules, level: int, carry: _Carry, off: Collection[PageClass]
) -> tuple[Bytes, Flags]:
    """The class of each page of a block, 0 (KERNEL) to keep it, and which are slab. `carry` is read and updated."""
    block = _Block(data, count, rules)
    is_tail = (block.u64(rules.compound_head) & np.uint64(1)) != 0
    is_head = block.has(rules.head_mask) & ~is_tail
    heads = np.flatnonzero(is_head)

    slab = block.is_type(rules.slab_type) if rules.slab_type is not None else block.has(rules.slab_mask)
    knows_slab = rules.slab_type is not None or rules.slab_mask is not None
    # Bit 0 of mapping marks anonymous memory, but in a slab page the field holds something else.
    anon = (block.mapping & np.uint64(1)) != 0
    anon = anon & ~slab if knows_slab else np.zeros(count, dtype=np.bool_)
    # PG_swapcache shares its bit with PG_owner_priv_1 since 4.10 (6326fec1122c): alone it proves nothing.
    swapcache = block.has(rules.swapcache_mask) & block.has(rules.swapbacked_mask)
    cache = (block.has(rules.lru_mask) | swapcache) & ~anon
    if not knows_slab:
        cache &= (block.mapping & np.uint64(1)) == 0
    private = block.has(rules.private_mask)

    classes = np.zeros(count, dtype=np.uint8)
    spans = np.ones(count, dtype=np.int64)
    if len(heads):
        spans[heads] = np.int64(1) << np.minimum(_orders(block, heads, start, rules), 62)

    slab_heads = np.flatnonzero(slab & ~is_tail)
    is_slab = np.zeros(count, dtype=np.bool_)
    is_slab[_positions(slab_heads, np.minimum(spans[slab_heads], count - slab_heads))] = True

    undecided = ~is_tail

    def assign(mask: Flags, page_class: PageClass) -> None:
        nonlocal undecided
        if page_class in off:
            return
        mask = mask & undecided
        classes[mask] = page_class
        undecided &= ~mask

    if level & Level.FREE and rules.buddy_type is not None and PageClass.FREE not in off:
        buddy = block.is_type(rules.buddy_type) & ~slab & undecided
        orders = block.u64(rules.private)[buddy]
        # An order that no free list has means a damaged struct page: the page is kept.
        sane = orders < np.uint64(rules.max_order)
        index = np.flatnonzero(buddy)
        undecided[index[~sane]] = False
        spans[index[sane]] = np.int64(1) << orders[sane].astype(np.int64)
        buddy[index[~sane]] = False
        assign(buddy, PageClass.FREE)
        if rules.unaccepted_type is not None and rules.max_order:
            unaccepted = block.is_type(rules.unaccepted_type)
            spans[unaccepted & undecided] = 1 << (rules.max_order - 1)
            assign(unaccepted, PageClass.UNACCEPTED)
    if level & (Level.CACHE | Level.CACHE_PRIVATE) and rules.private_mask is not None:
        if level & Level.CACHE:
            assign(cache & ~private, PageClass.CACHE)
        if level & Level.CACHE_PRIVATE:
            assign(cache & private, PageClass.CACHE_PRIVATE)
            assign(cache & ~private, PageClass.CACHE)
    if level & Level.USER:
        assign(anon | _hugetlb(block, heads, rules), PageClass.USER)
    # These two are never read, at any level: touching a poisoned page can stop the capture kernel.
    assign(block.has(rules.hwpoison_mask), PageClass.HWPOISON)
    assign(block.is_type(rules.offline_type) & ~slab, PageClass.OFFLINE)

    return _spread(classes, spans, start, carry), is_slab


def _positions(starts: NDArray[np.intp], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """All positions of all ranges: each start repeated, and 0, 1, 2, ... added within each range."""
    offsets = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + offsets


def _spread(classes: Bytes, spans: NDArray[np.int64], start: int, carry: _Carry) -> Bytes:
    """Lets each decided page cover its whole range; a page inside an earlier range is not asked again.

    Ranges never overlap in a sound memory map. Where they do (stale struct pages inside a free block), the earlier
    wins, which is what a walk from the lowest pfn upwards would do.
    """
    count = len(classes)
    if carry.until > start:
        covered = min(carry.until - start, count)
        classes[:covered] = carry.page_class
        spans[:covered] = 1
    wide = np.flatnonzero((classes != 0) & (spans > 1))
    if not len(wide):
        return classes
    ends = wide + spans[wide]
    reach = np.maximum.accumulate(ends)
    inside = np.zeros(len(wide), dtype=np.bool_)
    inside[1:] = wide[1:] < reach[:-1]
    if inside.any():
        wide, ends = _without_nested(wide, ends)
    last = int(ends[-1])
    if last > count:
        carry.until = start + last
        carry.page_class = PageClass(int(classes[wide[-1]]))
        ends = np.minimum(ends, count)
    lengths = ends - wide
    classes[_positions(wide, lengths)] = np.repeat(classes[wide], lengths)
    return classes


def _without_nested(wide: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ranges that do not begin inside an earlier one that counts."""
    chosen: list[int] = []
    until = 0
    for index, (begin, end) in enumerate(zip(ints(wide), ints(ends), strict=True)):
        if begin >= until:
            chosen.append(index)
            until = end
    return wide[chosen], ends[chosen]
