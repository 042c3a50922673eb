# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages fit on the target: the wanted level, the next of the ladder, or what an analyst needs first."""

from __future__ import annotations

import dataclasses

import numpy as np

from kdumpd.collector.options import DumpOptions
from kdumpd.collector.order import Waiting
from kdumpd.collector.progress import size_text
from kdumpd.collector.sample import SampledPages
from kdumpd.collector.source import Source
from kdumpd.dumpfile.diskdump import DESCRIPTOR, SUB_HEADER_SIZE, Codec, layout
from kdumpd.dumpfile.manifest import Step
from kdumpd.dumpfile.sink import Sink
from kdumpd.vmcore.arrays import NDArray, count_bits
from kdumpd.vmcore.classify import Classification, copy_bits

# What the sample may be off by: a level is taken when it fits with so much to spare. The last one is tried as long
# as it is not sure to fail, for a dump that ends early holds more than one that was not begun.
_SPARE = 1.03
_LAST_CHANCE = 0.85
_LOOSE = 1.25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The pages to write. `shortage` says why they are not all that the level asks for; None when they are. `tight`
    is a plan that only fits when nothing takes more room than was estimated."""

    level: int
    found: Classification
    kept: NDArray[np.uint8]
    shortage: str | None
    tight: bool = False


def fitting_plan(source: Source, sink: Sink, options: DumpOptions) -> Plan:
    """Classifies for one level after the other until the dump fits. What was decided is added to `source.steps`."""
    room = _room(sink, options)
    if room is None:
        level = options.levels[0]
        found = source.classify(level)
        return Plan(level=level, found=found, kept=found.kept, shortage=None)
    for number, level in enumerate(options.levels, start=1):
        is_last = number == len(options.levels)
        found = source.classify(level)
        need = _estimate(source, options, found.kept, found.kept_count, room)
        if need * (_LAST_CHANCE if is_last else _SPARE) <= room:
            if is_last and number > 1:
                reason = f"a dump of level {level} was made instead, of about {size_text(need)}"
                source.steps.append(Step(f"level-{level}", reason))
            return Plan(level=level, found=found, kept=found.kept, shortage=None, tight=need * _LOOSE > room)
        _tell(source, f"not-level-{level}", room, need, f"a dump of level {level}")
    return _reduced(source, options, level, found, room)


def _room(sink: Sink, options: DumpOptions) -> int | None:
    """Bytes that the dump may take; None when nobody knows."""
    free = sink.free_bytes()
    if free is None:
        return None
    return max(0, free - options.keep_free_bytes - free * options.keep_free_percent // 100)


def _reduced(source: Source, options: DumpOptions, level: int, found: Classification, room: int) -> Plan:
    """What an analyst needs first, with slab if there is room for it. Without room it is tried all the same."""
    rest = Waiting(source.new_bitmap(len(found.kept)))
    copy_bits(found.kept, rest.bits)
    for stage in source.stages():
        rest.take(stage.pfns)
    # In place: beside these bitmaps there may be no room for more.
    critical, kept = rest.bits, source.new_bitmap(len(found.kept))
    np.bitwise_and(found.kept, np.invert(critical, out=critical), out=critical)
    np.bitwise_or(np.bitwise_and(found.kept, found.slab, out=kept), critical, out=kept)
    name, saved = "critical-and-slab", "what an analyst needs first and slab were saved"
    need = _estimate(source, options, kept, count_bits(kept), room)
    if need * _SPARE > room:
        _tell(source, "not-critical-and-slab", room, need, "what an analyst needs first, with slab,")
        name, saved, kept = "critical", "what an analyst needs first was saved", critical
    shortage = f"the target has room for {size_text(room)} only; {saved}"
    source.steps.append(Step(name, shortage))
    return Plan(level=level, found=found, kept=kept, shortage=shortage, tight=True)


def _tell(source: Source, step: str, room: int, need: int, what: str) -> None:
    source.steps.append(
        Step(step, f"{what} needs about {size_text(need)}, and the target has room for {size_text(room)}")
    )


def _estimate(source: Source, options: DumpOptions, kept: NDArray[np.uint8], count: int, room: int) -> int:
    """Bytes that a dump of the `count` pages of `kept` will take: a sample is packed where it could be too much."""
    core, page_size = source.core, source.core.page_size
    sub_blocks, bitmap_blocks = layout(max_mapnr=core.max_pfn, note_size=len(core.notes_block), block_size=page_size)
    head = (1 + sub_blocks + bitmap_blocks) * page_size + SUB_HEADER_SIZE + count * DESCRIPTOR.size
    if not count or (head + count * page_size) * _SPARE <= room:
        return head + count * page_size
    # An ELF core has its pages as they are.
    codec = Codec.RAW if options.elf else options.codec
    sample = SampledPages(core, kept).packed(codec, options.compression_level)
    return head + int(count * min(sample.bytes_per_page, page_size))
