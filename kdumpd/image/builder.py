# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a capture image and puts it in place, checked.

The order is: gather, pack, write under a temporary name, read those bytes back, check them, rename the image,
rename its record. A build that ends anywhere before leaves the old pair; one that ends between the two
renames leaves a record that does not match, which `verify` and `freshness` notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import kdumpd
from kdumpd.config.capture import CaptureConfig
from kdumpd.errors import BuildError, BusyError, UnsupportedError, os_reason
from kdumpd.host.kernels import Kernel, read_kernel_config
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import contents, cpio, kernel_facts, kmodules, network, pack, programs, pyclosure, storage, verify
from kdumpd.image.capture import find_init
from kdumpd.image.record import (
    INITRD_NAME,
    MANIFEST_PATH,
    RECORD_NAME,
    FileRecord,
    ImageRecord,
    Source,
    image_id,
    manifest_json,
)

_TEMPORARY = ".new"
# Without these the kernel would come up and could do nothing with what it is given.
NEEDED_OPTIONS = {
    "CONFIG_BLK_DEV_INITRD": "unpack a capture image",
    "CONFIG_DEVTMPFS": "show its disks to the collector",
    "CONFIG_PROC_VMCORE": "show the crashed memory",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build. For `targets` without a block device no disk drivers are looked for. `root` is where the kernel's
    configuration and sysfs are read.
    """

    capture: CaptureConfig
    kernel: Kernel
    targets: tuple[ResolvedTarget, ...]
    output: Path
    root: Path = Path("/")
    interpreter: str = pyclosure.INTERPRETER
    collector_modules: tuple[str, ...] = pyclosure.COLLECTOR_MODULES
    notes: tuple[str, ...] = ()


# (what is done now, how far the whole build is from 0 to 1)
Progress = Callable[[str, float], None]


def build(request: BuildRequest, progress: Progress = lambda phase, fraction: None) -> ImageRecord:
    """Builds the image into `request.output` (0700; files 0600) and returns its record.

    Raises BuildError when something the image needs is missing or its check fails, UnsupportedError when the
    kernel cannot be a capture kernel, BusyError when another build of the same folder is under way. In each case
    the image that was there stays as it was.
    """
    config = read_kernel_config(request.kernel.release, request.root)
    _require_options(request.kernel, config)
    with _locked(request.output):
        progress("collecting files", 0.0)
        tree = gather(request, config)
        progress("packing", 0.4)
        record, packed = _assemble(request, tree, pack.choose(config))
        progress("checking", 0.9)
        _install(request.output, record, packed)
    return record


def gather(request: BuildRequest, kernel_config: dict[str, str] | None) -> contents.Tree:
    """All entries but the manifest. Raises BuildError naming what is missing."""
    tree = contents.skeleton(request.capture, find_init())
    tree.notes.extend(request.notes)
    facts = kernel_facts.running_kernel_facts(request.kernel.release, request.root)
    if facts is not None:
        tree.add_text(kernel_facts.PATH, facts.to_json())
    index = kmodules.read_index(request.kernel)
    paths = kmodules.modules_for(
        index, request.targets, kernel_config, request.root, tree.notes, request.capture.added_modules
    )
    paths = tuple(dict.fromkeys((*paths, *network.modules(index, request.capture, request.root))))
    contents.add_modules(tree, index, request.kernel.release, paths, request.root)
    busybox = next((place for place in contents.BUSYBOX_PLACES if os.path.exists(place)), None)
    if busybox is None:
        raise BuildError("busybox, which the capture image needs, is not installed", hint="install busybox-static")
    applets = applets_of(busybox)
    elfs = contents.add_busybox(tree, applets, busybox)
    network.add_tools(tree, request.capture, applets)
    elfs += storage.add_tools(tree, request.targets)
    network.add_trust(tree, request.capture, request.root)
    requested = (("cryptography",) if request.capture.encrypt_to else ()) + (
        ("paramiko",) if network.asks_for_ssh(request.capture) else ()
    )
    closure = pyclosure.find_closure(request.interpreter, pyclosure.PACKAGE_DIR, request.collector_modules, requested)
    elfs += programs.add_programs(tree, request.capture.hooks, request.capture.extra_bins, request.root)
    elfs += contents.add_python(tree, closure, pyclosure.PACKAGE_DIR, request.interpreter)
    contents.add_libraries(tree, elfs, closure.mapped)
    return tree


def _require_options(kernel: Kernel, config: dict[str, str] | None) -> None:
    for option, purpose in NEEDED_OPTIONS.items():
        if config is not None and config.get(option) != "y":
            raise UnsupportedError(
                f"kernel {kernel.release} cannot {purpose}: it was built without {option}",
                hint="boot a kernel that has it",
            )


def _assemble(request: BuildRequest, tree: contents.Tree, compression: str) -> tuple[ImageRecord, bytes]:
    files = tree.records()
    name = image_id(files)
    release = request.kernel.release
    text = manifest_json(name, release, kdumpd.__version__, files)
    tree.add(cpio.Entry(path=MANIFEST_PATH, mode=stat.S_IFREG | 0o600, content=text.encode()))
    archive = cpio.write(tree.entries.values())
    packed = pack.pack(archive, compression)
    modules = tree.entries["etc/kdumpd/modules"].content.decode().splitlines()
    record = ImageRecord(
        image_id=name,
        kdumpd_version=kdumpd.__version__,
        kernel=release,
        kernel_image=_kernel_source(request.kernel),
        compression=compression,
        packed_bytes=len(packed),
        packed_sha256=hashlib.sha256(packed).hexdigest(),
        unpacked_bytes=len(archive),
        capture=request.capture,
        modules=tuple(modules),
        notes=tuple(tree.notes),
        files=_with_manifest(files, tree.entries[MANIFEST_PATH]),
    )
    return record, packed


def _with_manifest(files: tuple[FileRecord, ...], manifest: cpio.Entry) -> tuple[FileRecord, ...]:
    return tuple(sorted((*files, contents.record_of(manifest)), key=lambda file: file.path))


def _kernel_source(kernel: Kernel) -> Source:
    return contents.read_source(str(kernel.image))[1]


def applets_of(busybox: str) -> list[str]:
    """The applets of a busybox that runs here. Raises BuildError."""
    try:
        done = subprocess.run([busybox, "--list"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{busybox} does not run: {error}", hint="install busybox-static again") from error
    return done.stdout.split()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes `folder` (0700) and keeps other builds out of it until the block ends."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(f"the folder {folder} cannot be made: {os_reason(error)}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(
                f"another build of the capture image in {folder} is under way", hint="wait for it to end"
            ) from error
        yield
    finally:
        os.close(handle)


def _install(folder: Path, record: ImageRecord, packed: bytes) -> None:
    new_initrd, new_record = folder / (INITRD_NAME + _TEMPORARY), folder / (RECORD_NAME + _TEMPORARY)
    try:
        _write(new_initrd, packed)
        _write(new_record, record.to_json().encode())
        written = new_initrd.read_bytes()
        if hashlib.sha256(written).hexdigest() != record.packed_sha256:
            raise BuildError(f"{new_initrd} does not read back as it was written", hint="check the disk")
        verify.check_packed(written, record)
        # The image first: a record without its image is noticed, an image without its record is too.
        os.rename(new_initrd, folder / INITRD_NAME)
        os.rename(new_record, folder / RECORD_NAME)
        _sync_folder(folder)
    except OSError as error:
        raise BuildError(
            f"the capture image cannot be written to {folder}: {os_reason(error)}", hint=f"df -h {folder}"
        ) from error
    finally:
        for path in (new_initrd, new_record):
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # left by a build that was killed
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
