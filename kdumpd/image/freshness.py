# SPDX-License-Identifier: GPL-2.0-or-later
"""Is the image on disk still the one a build would make now? Answered without building.

Files of the host are compared by size and times first; only where those differ is the content hashed, so that
asking costs next to nothing. Whether the image itself is whole is the business of `verify`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import kdumpd
from kdumpd.config.capture import CaptureConfig
from kdumpd.config.model import Builder
from kdumpd.errors import KdumpError
from kdumpd.host.kernels import Kernel, read_kernel_config
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import kmodules, pyclosure
from kdumpd.image.capture import find_init
from kdumpd.image.record import IMAGE_PACKAGE, FileRecord, ImageRecord, Source

_NAMED_FILES = 3


def freshness(
    record: ImageRecord,
    capture: CaptureConfig,
    kernel: Kernel,
    targets: Sequence[ResolvedTarget] = (),
    root: Path = Path("/"),
    built_by: tuple[Builder, tuple[str, ...]] | None = None,
) -> tuple[str, ...]:
    """Why the image of `record` is stale, one sentence each; empty while it is fresh.

    With `targets` the modules they would need now are compared as well, with `built_by` the builder and its words.
    """
    reasons = [*_settings(record, capture), *_builder(record, built_by), *base_reasons(record, kernel)]
    if targets and not reasons:
        reasons.extend(_modules(record, capture, kernel, targets, root))
    return tuple(reasons)


def base_reasons(record: ImageRecord, kernel: Kernel) -> list[str]:
    """As `freshness`, but for the settings and for what they decide."""
    return [*_kernel(record, kernel), *stock_reasons(record, record.files)]


def stock_reasons(record: ImageRecord, files: Iterable[FileRecord]) -> list[str]:
    """As `base_reasons`, for `files` of the image alone, whatever the kernel is."""
    reasons = []
    if record.kdumpd_version != kdumpd.__version__:
        reasons.append(f"the image was built by kdumpd {record.kdumpd_version}, this is {kdumpd.__version__}")
    sources = (file.source for file in files if file.source is not None)
    changed = [path for path in map(_changed, sources) if path is not None]
    if changed:
        more = f" and {len(changed) - _NAMED_FILES} more" if len(changed) > _NAMED_FILES else ""
        reasons.append(f"files in the image changed on the host: {', '.join(changed[:_NAMED_FILES])}{more}")
    reasons.extend(_own_files(record))
    return reasons


def _settings(record: ImageRecord, capture: CaptureConfig) -> list[str]:
    before, now = _flat(record.capture.asked), _flat(capture.asked)
    changed = [
        f"{name.replace('_', ' ')} changed from {before[name]} to {value}"
        for name, value in now.items()
        if name != "kernel" and before[name] != value
    ]
    if not changed and record.capture.asked.destinations != capture.asked.destinations:
        changed.append("the target's disks are put together in another way than when the image was built")
    return changed


def _flat(settings: object) -> dict[str, str]:
    """The settings by name, those of a group of them too, as a person writes them."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type] # callers give dataclasses
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found.update(_flat(value))
        else:
            found[field.name] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found


def _builder(record: ImageRecord, built_by: tuple[Builder, tuple[str, ...]] | None) -> list[str]:
    if built_by is None or (record.builder, record.builder_args) == built_by:
        return []
    if record.builder is not built_by[0]:
        return [f"the image was built by {record.builder}, wanted is {built_by[0]}"]
    return [f"the words for {record.builder} changed"]


def _kernel(record: ImageRecord, kernel: Kernel) -> list[str]:
    if record.kernel != kernel.release:
        return [f"the image was built for kernel {record.kernel}, wanted is {kernel.release}"]
    if record.kernel_image.path != str(kernel.image) or _changed(record.kernel_image) is not None:
        return [f"the kernel image {kernel.image} changed"]
    return []


def _changed(source: Source) -> str | None:
    """The path of a source that is gone or has other content."""
    try:
        status = os.stat(source.path)
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if facts == (source.size, source.mtime_ns, source.ctime_ns):
            return None
        if status.st_size == source.size:
            with open(source.path, "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() == source.sha256:
                    return None
    except OSError:
        return source.path  # gone or unreadable: a build would fail or find another
    return source.path


def _own_files(record: ImageRecord) -> list[str]:
    """Files of kdumpd that are new, or that lie elsewhere: another installation than the image's."""
    used = {entry.source.path for entry in record.files if entry.source and entry.path.startswith(IMAGE_PACKAGE)}
    if used != set(map(str, pyclosure.own_files())):
        return ["the image holds another installation of kdumpd than this one"]
    try:
        init = str(find_init())
        known = any(entry.source and entry.source.path == init for entry in record.files)
        return [] if known else ["the image has another init"]
    except KdumpError as error:
        return [error.sentence]


def _modules(
    record: ImageRecord, capture: CaptureConfig, kernel: Kernel, targets: Sequence[ResolvedTarget], root: Path
) -> list[str]:
    try:
        index = kmodules.read_index(kernel)
        config = read_kernel_config(kernel.release, root)
        wanted = kmodules.modules_for(index, targets, config, root, extra=capture.extra_modules)
        wanted = tuple(dict.fromkeys((*kmodules.for_watchdogs(index, capture.watchdogs), *wanted)))
    except KdumpError as error:
        return [f"the modules for the target cannot be found any more: {error.sentence}"]
    used = [kmodules.module_name(path) for path in record.modules]
    now = [kmodules.module_name(path) for path in wanted]
    if record.capture.network is not None:
        # The drivers of network cards are among them, which this process may not see: the rest must be there.
        used = [name for name in used if name in now]
    return [] if used == now else [f"the target needs the modules {' '.join(now) or '(none)'} now"]
