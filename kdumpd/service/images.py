# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of the capture image on disk, as the service needs it: there, whole, fresh?

The questions are answered by `kdumpd.image`; here answers are remembered as long as nothing they rest on changed,
because the service asks every half minute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path

from kdumpd.config.model import Config
from kdumpd.errors import BuildError, KdumpError, os_reason
from kdumpd.host.kernels import Kernel
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import ImageRecord, capture_config, read_record
from kdumpd.image.freshness import freshness
from kdumpd.image.record import INITRD_NAME, RECORD_NAME
from kdumpd.service.model import Image
from kdumpd.service.places import Places

# Files that went into the image are looked at again after this time even when the record is the same.
_FRESH_SECONDS = 300.0

_Stamp = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class _Remembered:
    key: object
    until: float
    image: Image


class ImageReader:
    """Reads the image of one kernel release below the state folder."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._last: _Remembered | None = None
        self.sources: frozenset[str] = frozenset()  # files of the host that the image on disk was made of

    def forget(self) -> None:
        """The next answer is a fresh one."""
        self._last = None

    def read(self, release: str, config: Config, kernel: Kernel | None, targets: tuple[ResolvedTarget, ...]) -> Image:
        """The image of `release`, judged against what a build would make of `config`, `kernel` and `targets` now."""
        folder = self._places.state_dir / release
        path = folder / INITRD_NAME
        stamps = (_stamp(path), _stamp(folder / RECORD_NAME))
        key = (stamps, config, kernel, targets, None if kernel is None else _stamp(kernel.image))
        if self._last is not None and self._last.key == key and time.monotonic() < self._last.until:
            return self._last.image
        image = self._read(folder, path, config, kernel, targets)
        self._last = _Remembered(key, time.monotonic() + _FRESH_SECONDS, image)
        return image

    def _read(
        self, folder: Path, path: Path, config: Config, kernel: Kernel | None, targets: tuple[ResolvedTarget, ...]
    ) -> Image:
        self.sources = frozenset()
        if not path.exists():
            return Image(path=path)
        try:
            record = read_record(folder)
            _check_whole(path, record)
        except KdumpError as error:
            return Image(path=path, present=True, damaged=error.sentence)
        self.sources = frozenset(entry.source.path for entry in record.files if entry.source is not None)
        reasons: tuple[str, ...] = ()
        if kernel is not None and targets and not config.errors:
            capture = capture_config(config, targets, os.uname().nodename, kernel.release, self._places.root)
            built_by = (config.builder, config.builder_args)
            reasons = freshness(record, capture, kernel, targets, self._places.root, built_by)
        modules = frozenset(name.lstrip("/") for name in record.modules)
        return Image(
            path=path,
            present=True,
            image_id=record.image_id,
            sha256=record.packed_sha256,
            kernel_sha256=record.kernel_image.sha256,
            packed_bytes=record.packed_bytes,
            unpacked_bytes=record.unpacked_bytes,
            modules_bytes=sum(entry.size for entry in record.files if entry.path in modules),
            stale="; ".join(reasons) or None,
        )


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _check_whole(path: Path, record: ImageRecord) -> None:
    """Raises BuildError unless the file is the one that was built and checked."""
    try:
        if path.stat().st_size != record.packed_bytes:
            raise BuildError(f"it has {path.stat().st_size} bytes, its record says {record.packed_bytes}")
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record.packed_sha256:
                raise BuildError("it is not the file that was built and checked")
    except OSError as error:
        raise BuildError(f"it cannot be read: {os_reason(error)}") from error
