# SPDX-License-Identifier: GPL-2.0-or-later
"""The archives that an image is made of, one behind the other as the kernel unpacks them (buffer-format.rst).

- `base`, packed: what runs first, and all there is where no squashfs can be mounted
- `payload`, as it is: a squashfs with everything below /usr
- `kernel`, packed: modules and firmware. What is before it, the stock, is the same for each kernel, and is taken from
  an image that there is (`reuse`). The images of other tools have this in their base
- `overlay`, packed: the settings, /etc/kdumpd. It alone is made anew when only the configuration changed

Each begins at a multiple of 512 bytes; the bytes between are zeros, which the kernel passes over.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import stat
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from kdumpd.errors import BuildError
from kdumpd.image import cpio, pack, squash
from kdumpd.image.contents import Tree
from kdumpd.image.cpio import Entry
from kdumpd.image.record import FileRecord, ImageRecord, Part

PAYLOAD_PATH = "kdumpd/payload.squashfs"
BASE, PAYLOAD, KERNEL, OVERLAY = "base", "payload", "kernel", "overlay"
STOCK = (BASE, PAYLOAD)
_BLOCK = 512
_REBUILD = "rebuild the image: kdumpctl rebuild"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The first archives of an image, their bytes, what is in them, and sentences for whoever builds the image; the
    first `stock_notes` of these are on the stock. `checked` says that they come from an image that passed its check.
    """

    parts: tuple[Part, ...]
    packed: bytes
    files: tuple[FileRecord, ...]
    notes: tuple[str, ...]
    stock_notes: int
    checked: bool = False


def write_base(entries: Mapping[str, Entry], compression: str) -> tuple[tuple[Part, ...], bytes]:
    """The archive that holds `entries`, and its bytes."""
    image = _Image()
    image.add(BASE, entries.values(), compression)
    return tuple(image.parts), bytes(image.data)


def write_squashed(
    entries: Mapping[str, Entry], early: Iterable[str], compression: str
) -> tuple[tuple[Part, ...], bytes, Entry]:
    """As `write_base`, with a squashfs of all that lies below /usr, which is the third of what is returned; but `early`
    is there from the start.
    """
    inside = [entry for path, entry in entries.items() if path.startswith(f"{squash.FOLDER}/") or path == squash.FOLDER]
    kept = set(early) | {squash.FOLDER}
    for path in early:
        parts = path.split("/")
        kept.update("/".join(parts[:length]) for length in range(1, len(parts)))
    found = [entry for path, entry in entries.items() if path in kept or not path.startswith(f"{squash.FOLDER}/")]
    image = _Image()
    with ThreadPoolExecutor(1) as aside:
        packed = aside.submit(squash.write, inside)
        image.add(BASE, found, compression)
    payload = Entry(path=PAYLOAD_PATH, mode=stat.S_IFREG | 0o600, content=packed.result())
    image.add(PAYLOAD, [payload], "none")  # packed already
    return tuple(image.parts), bytes(image.data), payload


def write_behind(base: Base, name: str, entries: Iterable[Entry], compression: str) -> tuple[tuple[Part, ...], bytes]:
    """The archives of `base` and one more behind them, and their bytes."""
    image = _Image(list(base.parts), bytearray(base.packed))
    image.add(name, entries, compression)
    return tuple(image.parts), bytes(image.data)


def with_kernel(stock: Base, tree: Tree, compression: str) -> Base:
    """The stock and behind it what depends on the kernel."""
    archives, packed = write_behind(stock, KERNEL, tree.entries.values(), compression)
    return Base(
        parts=archives,
        packed=packed,
        files=(*stock.files, *tree.records()),
        notes=(*stock.notes, *tree.notes),
        stock_notes=len(stock.notes),
        checked=stock.checked,
    )


def base_of(packed: bytes, record: ImageRecord, settings: Container[str]) -> Base:
    """All of a whole image but its overlay, which has `settings`."""
    return _first(packed, record, lambda part: part.name != OVERLAY, settings, record.notes)


def stock_of(packed: bytes, record: ImageRecord) -> Base:
    """What of a whole image is the same for each kernel. Raises BuildError when the rest is damaged."""
    others = [unpack(packed, part) for part in record.parts if part.name not in STOCK]
    paths = {entry.path for archive in others for entry in cpio.read(archive)}
    return _first(packed, record, lambda part: part.name in STOCK, paths, record.notes[: record.stock_notes])


def _first(
    packed: bytes,
    record: ImageRecord,
    wanted: Callable[[Part], bool],
    left_out: Container[str],
    notes: tuple[str, ...],
) -> Base:
    kept = tuple(itertools.takewhile(wanted, record.parts))
    return Base(
        parts=kept,
        packed=packed[: max((part.offset + part.packed_bytes for part in kept), default=0)],
        files=tuple(file for file in record.files if file.path not in left_out),
        notes=notes,
        stock_notes=min(record.stock_notes, len(notes)),
        checked=True,
    )


def read(packed: bytes, parts: tuple[Part, ...], *, squashed: bool = True) -> dict[str, Entry]:
    """All entries of an image by path, with `squashed` those of its squashfs too.

    Raises BuildError when it is not what `parts` say.
    """
    entries: dict[str, Entry] = {}
    at = 0
    for part in parts:
        if part.offset < at or any(packed[at : part.offset]) or len(packed) < part.offset + part.packed_bytes:
            raise _wrong(f"its {part.name} does not lie where its record says")
        at = part.offset + part.packed_bytes
        for entry in cpio.read(unpack(packed, part)):
            if entry.path in entries:
                raise _wrong(f"/{entry.path} is in it twice")
            entries[entry.path] = entry
    if any(packed[at:]):
        raise _wrong("there is something behind its last part")
    payload = entries.get(PAYLOAD_PATH)
    if payload is not None and squashed:
        for path, entry in squash.read(payload.content).items():
            # Folders and what is needed before the squashfs is mounted are in both.
            if entries.setdefault(path, entry) != entry:
                raise _wrong(f"/{path} is in it twice, and not the same")
    return entries


def unpack(packed: bytes, part: Part) -> bytes:
    """The newc archive of one part. Raises BuildError when it is damaged."""
    data = packed[part.offset : part.offset + part.packed_bytes]
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise _wrong(f"its {part.name} is not the one its record describes")
    archive = pack.unpack(data, part.compression)
    if len(archive) != part.unpacked_bytes:
        raise _wrong(f"its {part.name} unpacks to {len(archive)} bytes instead of {part.unpacked_bytes}")
    return archive


class _Image:
    def __init__(self, parts: list[Part] | None = None, data: bytearray | None = None) -> None:
        self.parts = parts or []
        self.data = data or bytearray()

    def add(self, name: str, entries: Iterable[Entry], compression: str) -> None:
        archive = cpio.write(entries)
        packed = pack.pack(archive, compression)
        self.data += bytes(-len(self.data) % _BLOCK)
        self.parts.append(
            Part(
                name=name,
                compression=compression,
                offset=len(self.data),
                packed_bytes=len(packed),
                unpacked_bytes=len(archive),
                sha256=hashlib.sha256(packed).hexdigest(),
            )
        )
        self.data += packed


def _wrong(what: str) -> BuildError:
    return BuildError(f"the capture image did not pass its check: {what}", hint=_REBUILD)
