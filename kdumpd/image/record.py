# SPDX-License-Identifier: GPL-2.0-or-later
"""image.json: what a capture image holds and what it was made of.

Two questions are answered from it without a rebuild: is the image on disk the one that was checked, and were
the files it was made of changed since (`freshness`). The image itself carries a short form of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdumpd.config.capture import CaptureConfig
from kdumpd.config.model import Builder
from kdumpd.errors import BuildError, ConfigError, os_reason

FORMAT = 3  # 2: parts, base_key; 3: stock_key, stock_notes
INITRD_NAME = "initrd"
RECORD_NAME = "image.json"
NEW_RECORD_NAME = "image.json.new"
MANIFEST_PATH = "etc/kdumpd/image.json"
MODULES_PATH = "etc/kdumpd/modules"
WATCHDOGS_PATH = "etc/kdumpd/watchdogs"  # those of them that drive an armed watchdog
EARLY_PATH = "kdumpd/early"
# Where the package lies in the image, whatever its place on the host.
IMAGE_PACKAGE = "usr/lib/python3/dist-packages/kdumpd"
_REBUILD = "rebuild the image: kdumpctl rebuild"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The file of the host that an entry was made of, as it was then. Times are nanoseconds."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One entry of the image: `mode` with the file type, `sha256` of its content (a link's is its target)."""

    path: str
    mode: int
    size: int
    sha256: str
    source: Source | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the archives behind each other that an image is: its place in it, and its length as newc when unpacked."""

    name: str
    compression: str
    offset: int
    packed_bytes: int
    unpacked_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """See the module. `packed_sha256` is of the file `initrd` beside the record, `modules` are in load order, `notes`
    are sentences on what did not go as it should, the first `stock_notes` of them on what is the same for each kernel.
    `base_key` names all that decided what is in it, but for files of the host and settings; `stock_key` does so for
    what is the same for each kernel, and is empty where nothing is. `unpacked_bytes` is what it takes of memory for
    good, once it is unpacked.
    """

    image_id: str
    kdumpd_version: str
    kernel: str
    kernel_image: Source
    compression: str
    packed_bytes: int
    packed_sha256: str
    unpacked_bytes: int
    capture: CaptureConfig
    modules: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[FileRecord, ...]
    parts: tuple[Part, ...] = ()
    base_key: str = ""
    stock_key: str = ""
    stock_notes: int = 0
    builder: Builder = Builder.BUSYBOX
    builder_args: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text of image.json."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in {"capture", "files", "kernel_image", "parts"}
        }
        fields["parts"] = [dataclasses.asdict(part) for part in self.parts]
        fields["capture"] = json.loads(self.capture.to_json())
        fields["kernel_image"] = dataclasses.asdict(self.kernel_image)
        lines = ",\n  ".join(json.dumps(dataclasses.asdict(entry)) for entry in self.files)
        head = json.dumps({"format": FORMAT, **fields}, indent=1)
        return head.removesuffix("\n}") + f',\n "files": [\n  {lines}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str, source: str) -> ImageRecord:
        """Reads what `to_json` wrote. Raises BuildError naming `source` for anything else."""
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"its format is {raw['format']!r}, this kdumpd reads {FORMAT}")
            fields = {field.name: raw[field.name] for field in dataclasses.fields(cls)}
            fields["capture"] = CaptureConfig.from_json(json.dumps(raw["capture"]), source)
            fields["kernel_image"] = Source(**raw["kernel_image"])
            fields["modules"] = tuple(str(path) for path in raw["modules"])
            fields["notes"] = tuple(str(note) for note in raw["notes"])
            fields["files"] = tuple(_file_record(entry) for entry in raw["files"])
            fields["builder"] = Builder(raw["builder"])
            fields["builder_args"] = tuple(str(word) for word in raw["builder_args"])
            fields["parts"] = tuple(Part(**part) for part in raw["parts"])
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise BuildError(f"{source} is not the record of a capture image: {error}", hint=_REBUILD) from error

    def manifest_json(self) -> str:
        """What lies in the image as etc/kdumpd/image.json: only facts that equal input makes equal."""
        return manifest_json(self.image_id, self.kernel, self.kdumpd_version, self.files)


def manifest_json(image_id: str, kernel: str, version: str, files: Iterable[FileRecord]) -> str:
    """The short form of a record, one line per file, without itself."""
    lines = ",\n  ".join(
        json.dumps([entry.path, entry.mode, entry.size, entry.sha256]) for entry in files if entry.path != MANIFEST_PATH
    )
    head = json.dumps({"format": FORMAT, "image_id": image_id, "kernel": kernel, "kdumpd_version": version}, indent=1)
    return head.removesuffix("\n}") + f',\n "files": [\n  {lines}\n ]\n}}\n'


def image_id(files: Iterable[FileRecord]) -> str:
    """The name of an image by what it holds: sha256 over path, mode and content of all but its own manifest."""
    digest = hashlib.sha256()
    for entry in sorted(files, key=lambda entry: entry.path):
        if entry.path != MANIFEST_PATH:
            digest.update(f"{entry.path}\0{entry.mode:o}\0{entry.sha256}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_record(path: Path) -> ImageRecord:
    """The record at `path`: the file, or the folder that holds it as image.json.

    Where a build was killed between its two renames the image's record is still called image.json.new, and is read from
    there. Raises BuildError when it is missing or not a record.
    """
    if not path.is_dir():
        return _read(path)
    return _read(path / (NEW_RECORD_NAME if is_half_renamed(path) else RECORD_NAME))


def is_half_renamed(folder: Path) -> bool:
    """Whether the image in `folder` is the one of image.json.new: all is there, but for the last rename."""
    try:
        new = _read(folder / NEW_RECORD_NAME)
        if (folder / INITRD_NAME).stat().st_size != new.packed_bytes:
            return False
        with (folder / INITRD_NAME).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == new.packed_sha256
    except (BuildError, OSError):
        return False  # no build is under way, or it had not come that far


def _read(file: Path) -> ImageRecord:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not text"
        raise BuildError(f"the capture image has no record at {file}: {reason}", hint=_REBUILD) from error
    return ImageRecord.from_json(text, str(file))


def _file_record(raw: dict[str, Any]) -> FileRecord:
    source = raw["source"]
    fields = {**raw, "source": None if source is None else Source(**source)}
    return FileRecord(**fields)
