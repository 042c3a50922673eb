# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules by which a struct page says what its page holds, as this kernel's VMCOREINFO allows them.

Each rule is switched on by the keys it needs and by nothing else. Without them it is off, its pages are kept and
a note says so: makedumpfile's guesses for missing keys have dropped pages that were needed.
"""

from __future__ import annotations

import dataclasses
import enum

from kdumpd.errors import VmcoreError
from kdumpd.vmcore.vmcoreinfo import Vmcoreinfo

_MAX_ORDERS = 64


class PageClass(enum.IntEnum):
    """What a page holds. The names are those of the manifest's page counts."""

    KERNEL = 0
    FREE = 1
    UNACCEPTED = 2
    CACHE = 3
    CACHE_PRIVATE = 4
    USER = 5
    HWPOISON = 6
    OFFLINE = 7


class Level(enum.IntFlag):
    """The bits of a dump level (makedumpfile(8), option -d)."""

    ZERO = 1
    CACHE = 2
    CACHE_PRIVATE = 4
    USER = 8
    FREE = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Offsets in bytes into struct page, masks and 32-bit page-type values; None switches a rule off."""

    size_of_page: int
    flags: int
    mapcount: int
    mapping: int
    private: int
    compound_head: int
    max_order: int

    lru_mask: int | None
    private_mask: int | None
    swapcache_mask: int | None
    swapbacked_mask: int | None
    slab_mask: int | None
    hwpoison_mask: int | None
    head_mask: int | None

    buddy_type: int | None
    slab_type: int | None
    offline_type: int | None
    unaccepted_type: int | None
    hugetlb_type: int | None

    # The order of a compound page, in the struct page after its head: a byte of its own, or the low byte of flags.
    order_at: int | None
    # How that second struct page tells hugetlb where no page type does: a byte with a value, or a bit of flags.
    hugetlb_dtor_at: int | None
    hugetlb_dtor: int | None
    hugetlb_mask: int | None

    missing: tuple[str, ...]


def _u32(value: int | None) -> int | None:
    """Page types are printed as signed long but are unsigned ints in struct page."""
    return None if value is None else value & 0xFFFFFFFF


def _mask(number: int | None) -> int | None:
    return number if number is not None and 0 < number < 1 << 64 else None


def _inside(offset: int | None, size: int) -> bool:
    return offset is not None and 0 <= offset < size


def _bit(number: int | None) -> int | None:
    return 1 << number if number is not None and 0 <= number < 64 else None


def rules_of(info: Vmcoreinfo) -> Rules:
    """The rules that `info` supports. Raises VmcoreError when struct page itself is not described."""
    offsets: dict[str, int] = {}
    size = info.size("page") or 0
    for field in ("flags", "_mapcount", "mapping", "private"):
        value = info.offset(f"page.{field}")
        if value is None or not 0 <= value <= size - (4 if field == "_mapcount" else 8):
            raise VmcoreError(f"VMCOREINFO gives no usable OFFSET(page.{field})")
        offsets[field] = value
    # compound_head was renamed to compound_info in 7.1; bit 0 still marks a tail page.
    head_at = info.offset("page.compound_head")
    if head_at is None:
        head_at = info.offset("page.compound_info")
    if head_at is None or not 0 <= head_at <= size - 8:
        raise VmcoreError("VMCOREINFO gives no usable OFFSET(page.compound_head)")

    missing: list[str] = []

    def need(rule: str, **values: int | None) -> bool:
        lacking = [key for key, value in values.items() if value is None]
        if lacking:
            missing.append(f"{rule} are kept: VMCOREINFO lacks {', '.join(lacking)}")
        return not lacking

    lru, private = info.number("PG_lru"), info.number("PG_private")
    need("cache pages", PG_lru=lru)
    need("cache pages with private data", PG_private=private)
    buddy = info.number("PAGE_BUDDY_MAPCOUNT_VALUE")
    max_order = info.length("zone.free_area")
    if max_order is not None and not 0 < max_order < _MAX_ORDERS:
        max_order = None
    if not need("free pages", PAGE_BUDDY_MAPCOUNT_VALUE=buddy, LENGTH_zone_free_area=max_order):
        buddy = None
    slab_type = info.number("PAGE_SLAB_MAPCOUNT_VALUE")
    # PG_slab became a page type in 6.10 (46df8e73a4a3) and its bit now means something else: never both.
    slab_bit = info.number("PG_slab") if slab_type is None else None
    if slab_type is None and slab_bit is None:
        missing.append("user pages are kept: VMCOREINFO lacks PG_slab and PAGE_SLAB_MAPCOUNT_VALUE")

    order_at, dtor_at, dtor, hugetlb_mask = _compound(info, offsets["flags"])
    if order_at is None:
        missing.append("tails of compound pages are kept: VMCOREINFO does not tell where their order is")

    return Rules(
        size_of_page=size,
        flags=offsets["flags"],
        mapcount=offsets["_mapcount"],
        mapping=offsets["mapping"],
        private=offsets["private"],
        compound_head=head_at,
        max_order=max_order or 0,
        lru_mask=_bit(lru),
        private_mask=_bit(private),
        swapcache_mask=_bit(info.number("PG_swapcache")),
        swapbacked_mask=_bit(info.number("PG_swapbacked")),
        slab_mask=_bit(slab_bit),
        hwpoison_mask=_bit(info.number("PG_hwpoison")),
        head_mask=_mask(info.number("PG_head_mask")),
        buddy_type=_u32(buddy),
        slab_type=_u32(slab_type),
        offline_type=_u32(info.number("PAGE_OFFLINE_MAPCOUNT_VALUE")),
        unaccepted_type=_u32(info.number("PAGE_UNACCEPTED_MAPCOUNT_VALUE")),
        hugetlb_type=_u32(info.number("PAGE_HUGETLB_MAPCOUNT_VALUE")),
        order_at=order_at,
        hugetlb_dtor_at=dtor_at,
        hugetlb_dtor=dtor,
        hugetlb_mask=hugetlb_mask,
        missing=tuple(missing),
    )


def _compound(info: Vmcoreinfo, flags_at: int) -> tuple[int | None, int | None, int | None, int | None]:
    """Where the second struct page keeps the order and the hugetlb mark: (order_at, dtor_at, dtor, mask).

    The newest form whose keys are there counts, because distributions carry later forms back.
    """
    if info.number("PAGE_HUGETLB_MAPCOUNT_VALUE") is not None:
        return flags_at, None, None, None  # 6.9: hugetlb is a page type of the head (d99e3140a4d3)
    if info.number("PG_hugetlb") is not None:
        return flags_at, None, None, _bit(info.number("PG_hugetlb"))  # 6.6: a bit of folio._flags_1 (9c5ccf2db04b)
    dtor = info.number("HUGETLB_PAGE_DTOR")
    size = info.size("page") or 0
    # Members of the second page of struct folio from 6.3 on (1c5509be58f6), of struct page before; bytes since 4.16.
    for order_name, dtor_name, base in (
        ("folio._folio_order", "folio._folio_dtor", size),
        ("page.compound_order", "page.compound_dtor", 0),
    ):
        order, dtor_at = info.offset(order_name), info.offset(dtor_name)
        if order is not None and _inside(order - base, size):
            usable = dtor_at is not None and _inside(dtor_at - base, size)
            return order - base, dtor_at - base if usable and dtor_at is not None else None, dtor, None
    return None, None, None, None
