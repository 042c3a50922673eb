# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a capture image and puts it in place, checked.

What an earlier build made is used again as far as it is still what this one would make: all of it, so that nothing is
written, or all but the settings. Else the order is: gather, pack, write under a temporary name, read those bytes back,
check them, rename the image, rename its record. A build that ends anywhere before leaves the old pair; after one that
ends between the two renames the record is found under its temporary name, and the next build renames it.
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
from kdumpd.config.model import Builder
from kdumpd.errors import BuildError, BusyError, UnsupportedError, os_reason
from kdumpd.host.kernels import Kernel, read_kernel_config
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import (
    contents,
    cpio,
    kernel_facts,
    kmodules,
    network,
    pack,
    parts,
    programs,
    pyclosure,
    reuse,
    squash,
    storage,
    tools,
    verify,
)
from kdumpd.image.capture import find_init
from kdumpd.image.record import (
    INITRD_NAME,
    MANIFEST_PATH,
    NEW_RECORD_NAME,
    RECORD_NAME,
    FileRecord,
    ImageRecord,
    Source,
    image_id,
    is_half_renamed,
    manifest_json,
)

_NEW_INITRD_NAME = "initrd.new"
# Without these the kernel would come up and could do nothing with what it is given.
NEEDED_OPTIONS = {
    "CONFIG_BLK_DEV_INITRD": "unpack a capture image",
    "CONFIG_DEVTMPFS": "show its disks to the collector",
    "CONFIG_PROC_VMCORE": "show the crashed memory",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build. For `targets` without a block device no disk drivers are looked for. `root` is where the kernel's
    configuration and sysfs are read. `builder_args` are words for the tool that `builder` names.
    """

    capture: CaptureConfig
    kernel: Kernel
    targets: tuple[ResolvedTarget, ...]
    output: Path
    root: Path = Path("/")
    interpreter: str = pyclosure.INTERPRETER
    collector_modules: tuple[str, ...] = pyclosure.COLLECTOR_MODULES
    notes: tuple[str, ...] = ()
    builder: Builder = Builder.BUSYBOX
    builder_args: tuple[str, ...] = ()


# (what is done now, how far the whole build is from 0 to 1)
Progress = Callable[[str, float], None]


def build(
    request: BuildRequest, progress: Progress = lambda phase, fraction: None, *, anew: bool = False
) -> ImageRecord:
    """Builds the image into `request.output` (0700; files 0600) and returns its record.

    With `anew` nothing of the image that was there is used again. Raises BuildError when something the image needs is
    missing or its check fails, UnsupportedError when the kernel cannot be a capture kernel, BusyError when another
    build of the same folder is under way. In each case the image that was there stays as it was.
    """
    config = read_kernel_config(request.kernel.release, request.root)
    _require_options(request.kernel, config)
    with _locked(request.output):
        progress("collecting files", 0.0)
        wanted = _wanted(request, config)
        before = None if anew else reuse.find(request.output, wanted.key, request.kernel)
        settings = _settings(request, wanted, before)
        if before is None:
            tree = gather(request, wanted)
            if request.builder is not Builder.BUSYBOX:
                progress(f"running {request.builder}", 0.2)
                tree = tools.complete(tree, request.builder, request.builder_args, request.kernel)
            progress("packing", 0.4)
            base = _base(tree, wanted)
        elif before.has_settings(settings):
            return before.record
        else:
            base = before.base
        record, packed = _assemble(request, wanted, base, settings)
        progress("checking", 0.9)
        _install(request.output, record, packed)
    return record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is known before anything is gathered. `modules` and `early` (those that mount a squashfs; None where the
    image has none) are paths in the folder of modules; `key` names all that decides what is in the base.
    """

    index: kmodules.ModuleIndex
    modules: tuple[str, ...]
    early: tuple[str, ...] | None
    compression: str
    key: str
    notes: tuple[str, ...]


def _wanted(request: BuildRequest, kernel_config: dict[str, str] | None) -> Wanted:
    index = kmodules.read_index(request.kernel)
    notes = list(request.notes)
    extra = request.capture.added_modules
    modules = kmodules.modules_for(index, request.targets, kernel_config, request.root, notes, extra)
    modules = tuple(dict.fromkeys((*modules, *network.modules(index, request.capture, request.root))))
    compression = pack.choose(kernel_config)
    own = request.builder is Builder.BUSYBOX
    early, note = _early_modules(index, kernel_config) if own else (None, None)
    key = reuse.base_key(
        builder=request.builder,
        builder_args=request.builder_args,
        tool=() if own else tools.version(request.builder),
        kernel=request.kernel.release,
        modules=modules,
        early=early,
        compression=compression,
        interpreter=request.interpreter,
        collector_modules=request.collector_modules,
        optional=pyclosure.installed_optional(),
        trust=_trust(request),
        capture=request.capture,
    )
    notes.extend([] if note is None else [note])
    return Wanted(index=index, modules=modules, early=early, compression=compression, key=key, notes=tuple(notes))


def _trust(request: BuildRequest) -> tuple[str, ...]:
    """What is known of servers now: it is put together from files that may change."""
    tree = contents.Overlay()
    network.add_trust(tree, request.capture, request.root)
    return tuple(f"{record.path} {record.sha256}" for record in tree.records())


def _early_modules(
    index: kmodules.ModuleIndex, kernel_config: dict[str, str] | None
) -> tuple[tuple[str, ...] | None, str | None]:
    """The modules that mount a squashfs; or None, and the sentence why the image does without."""
    lacking = [option for option in squash.OPTIONS if (kernel_config or {}).get(option) not in ("y", "m")]
    lacking += [name for name in squash.MODULES if not lacking and name not in (*index.builtin, *index.depends)]
    if lacking:
        return None, f"the image is unpacked into memory as a whole, as the kernel mounts no squashfs: {lacking[0]}"
    if not squash.is_installed():
        return None, "the image is unpacked into memory as a whole; with squashfs-tools it would take a third of that"
    return kmodules.order(index, squash.MODULES), None


def stage(request: BuildRequest, folder: Path) -> None:
    """Writes what another tool has to put into its image, settings too, into `folder`, which is there and empty.

    Raises as `build` does.
    """
    config = read_kernel_config(request.kernel.release, request.root)
    _require_options(request.kernel, config)
    wanted = _wanted(request, config)
    tree, told = gather(request, wanted), _settings(request, wanted, None)
    files = _sorted(*tree.records(), *told.records())
    told.add_text(MANIFEST_PATH, manifest_json(image_id(files), request.kernel.release, kdumpd.__version__, files))
    try:
        squash.place_files((*tools.staged(tree), *told.entries.values()), folder)
    except OSError as error:
        raise BuildError(f"{error.filename} cannot be written: {os_reason(error)}", hint=f"df -h {folder}") from error


def gather(request: BuildRequest, wanted: Wanted) -> contents.Tree:
    """All entries of our own but the settings. Raises BuildError naming what is missing."""
    own = request.builder is Builder.BUSYBOX
    tree = contents.skeleton(find_init(), "init" if own else "kdumpd/init")
    tree.notes.extend(wanted.notes)
    release = request.kernel.release
    contents.add_modules(tree, wanted.index, release, wanted.modules, request.root)
    if wanted.early is not None:
        contents.add_early_modules(tree, wanted.index, release, wanted.early)
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


def _settings(request: BuildRequest, wanted: Wanted, before: reuse.Before | None) -> contents.Tree:
    """What lies in the overlay, and nothing else."""
    release = request.kernel.release
    tree = contents.settings(request.capture, [contents.module_place(release, path) for path in wanted.modules])
    # The same for each boot of a kernel, and slow to find.
    known = None if before is None else before.settings.get(kernel_facts.PATH)
    if known is not None:
        tree.add(known)
        return tree
    facts = kernel_facts.running_kernel_facts(release, request.root)
    if facts is not None:
        tree.add_text(kernel_facts.PATH, facts.to_json())
    return tree


def _base(tree: contents.Tree, wanted: Wanted) -> parts.Base:
    if wanted.early is not None:
        entries = parts.with_payload(tree.entries, tree.early)
        tree.entries[parts.PAYLOAD_PATH] = entries[parts.PAYLOAD_PATH]
    else:
        entries = tree.entries
    archives, packed = parts.write_base(entries, wanted.compression)
    return parts.Base(parts=archives, packed=packed, files=tree.records(), notes=tuple(tree.notes))


def _require_options(kernel: Kernel, config: dict[str, str] | None) -> None:
    for option, purpose in NEEDED_OPTIONS.items():
        if config is not None and config.get(option) != "y":
            raise UnsupportedError(
                f"kernel {kernel.release} cannot {purpose}: it was built without {option}",
                hint="boot a kernel that has it",
            )


def _assemble(
    request: BuildRequest, wanted: Wanted, base: parts.Base, settings: contents.Tree
) -> tuple[ImageRecord, bytes]:
    release = request.kernel.release
    files = _sorted(*base.files, *settings.records())
    name = image_id(files)
    text = manifest_json(name, release, kdumpd.__version__, files)
    settings.add(cpio.Entry(path=MANIFEST_PATH, mode=stat.S_IFREG | 0o600, content=text.encode()))
    archives, packed = parts.write_overlay(base, settings.entries.values(), wanted.compression)
    record = ImageRecord(
        image_id=name,
        kdumpd_version=kdumpd.__version__,
        kernel=release,
        kernel_image=_kernel_source(request.kernel),
        compression=wanted.compression,
        packed_bytes=len(packed),
        packed_sha256=hashlib.sha256(packed).hexdigest(),
        unpacked_bytes=sum(part.unpacked_bytes for part in archives),
        capture=request.capture,
        modules=tuple(contents.module_place(release, path) for path in wanted.modules),
        notes=base.notes,
        files=_sorted(*files, contents.record_of(settings.entries[MANIFEST_PATH])),
        parts=archives,
        base_key=wanted.key,
        builder=request.builder,
        builder_args=request.builder_args,
    )
    return record, packed


def _sorted(*files: FileRecord) -> tuple[FileRecord, ...]:
    return tuple(sorted(files, key=lambda file: file.path))


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
        if not folder.is_dir():
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
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
        _finish_renames(folder)
        yield
    finally:
        os.close(handle)


def _install(folder: Path, record: ImageRecord, packed: bytes) -> None:
    new_initrd, new_record = folder / _NEW_INITRD_NAME, folder / NEW_RECORD_NAME
    try:
        _write(new_initrd, packed)
        _write(new_record, record.to_json().encode())
        written = new_initrd.read_bytes()
        if hashlib.sha256(written).hexdigest() != record.packed_sha256:
            raise BuildError(f"{new_initrd} does not read back as it was written", hint="check the disk")
        verify.check_packed(written, record)
        # The image first: its record is found under either name, see read_record.
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


def _finish_renames(folder: Path) -> None:
    """Completes what a build that was killed had all but done."""
    try:
        if is_half_renamed(folder):
            os.rename(folder / NEW_RECORD_NAME, folder / RECORD_NAME)
            _sync_folder(folder)
    except OSError as error:
        raise BuildError(f"the folder {folder} cannot be written: {os_reason(error)}") from error


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
