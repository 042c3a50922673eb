# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a capture image and puts it in place, checked.

What an earlier build made is used again as far as it is still what this one would make: all of it, so that nothing is
written, all but the settings, or all but these and what depends on the kernel, which another kernel's image will do
for. Else the order is: gather, pack, write under a temporary name, read those bytes back,
check them, rename the image, rename its record. A build that ends anywhere before leaves the old pair; after one that
ends between the two renames the record is found under its temporary name, and the next build renames it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kdumpd
from kdumpd.config.capture import CaptureConfig
from kdumpd.config.model import Builder
from kdumpd.errors import BuildError, UnsupportedError, os_reason
from kdumpd.host.kernels import Kernel, read_kernel_config
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import (
    contents,
    cpio,
    install,
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
)
from kdumpd.image.capture import find_init
from kdumpd.image.record import (
    MANIFEST_PATH,
    WATCHDOGS_PATH,
    FileRecord,
    ImageRecord,
    Source,
    image_id,
    manifest_json,
)

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
    request: BuildRequest,
    progress: Progress = lambda phase, fraction: None,
    *,
    anew: bool = False,
    prepared: pyclosure.Begun | None = None,
) -> ImageRecord:
    """Builds the image into `request.output` (0700; files 0600) and returns its record.

    With `anew` nothing of the images that are there is used again. `prepared` is what `pyclosure.start` gave. Raises
    BuildError when something the image needs is missing or its check fails, UnsupportedError when that kernel cannot be
    a capture kernel, BusyError when another build of the same folder is under way. In each case the image that was
    there stays as it was.
    """
    config = read_kernel_config(request.kernel.release, request.root)
    _require_options(request.kernel, config)
    with install.locked(request.output):
        progress("collecting files", 0.0)
        wanted = _wanted(request, config)
        before = None if anew else reuse.find(request.output, wanted.key, request.kernel)
        if before is None:
            # The running kernel is looked at while other processes find and compile the collector.
            with ThreadPoolExecutor(1) as aside:
                found = aside.submit(_settings, request, wanted, None)
                base = _new_base(request, wanted, progress, anew=anew, prepared=prepared)
            settings = found.result()
        else:
            base, settings = before.base, _settings(request, wanted, before)
            if before.has_settings(settings):
                return before.record
        record, packed = _assemble(request, wanted, base, settings)
        progress("checking", 0.9)
        install.install(request.output, record, packed, stock_checked=base.checked)
    return record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is known before anything is gathered. `modules` and `early` (those that mount a squashfs; None where the
    image has none) are paths in the folder of modules; `key` names all that decides what is in the base, `stock_key`
    what decides that part of it which is the same for each kernel: empty where a tool makes the image. `watchdogs` are
    those of `modules` that drive a watchdog that is armed.
    """

    index: kmodules.ModuleIndex
    modules: tuple[str, ...]
    watchdogs: tuple[str, ...]
    early: tuple[str, ...] | None
    compression: str
    key: str
    stock_key: str
    notes: tuple[str, ...]


def _wanted(request: BuildRequest, kernel_config: dict[str, str] | None) -> Wanted:
    index = kmodules.read_index(request.kernel)
    notes = list(request.notes)
    capture = request.capture
    watchdogs = kmodules.for_watchdogs(index, capture.watchdogs, notes)
    modules = kmodules.modules_for(index, request.targets, kernel_config, request.root, notes, capture.extra_modules)
    modules = tuple(dict.fromkeys((*watchdogs, *modules, *network.modules(index, capture, request.root))))
    compression = pack.choose(kernel_config)
    own = request.builder is Builder.BUSYBOX
    early, note = _early_modules(index, kernel_config) if own else (None, None)
    stock = _stock_inputs(request, squashed=early is not None, compression=compression)
    key = reuse.base_key(
        builder=request.builder,
        builder_args=request.builder_args,
        tool=() if own else tools.version(request.builder),
        kernel=request.kernel.release,
        modules=modules,
        early=early,
        stock=stock,
        capture=capture,
    )
    notes.extend([] if note is None else [note])
    return Wanted(
        index=index,
        modules=modules,
        watchdogs=watchdogs,
        early=early,
        compression=compression,
        key=key,
        stock_key=reuse.stock_key(**stock) if own else "",
        notes=tuple(notes),
    )


def _stock_inputs(request: BuildRequest, *, squashed: bool, compression: str) -> dict[str, object]:
    """What `gather` looks at, beside files of the host: whatever it comes to ask of a request has to be here."""
    capture = request.capture
    return {
        "squashed": squashed,
        "compression": compression,
        "interpreter": request.interpreter,
        "collector_modules": request.collector_modules,
        "requested": _requested(capture),
        "optional": pyclosure.installed_optional(),
        "trust": _trust(request),
        "networked": capture.network is not None,
        "leases": network.has_leases(capture),
        "layers": sorted({layer.kind for layer in storage.layers_of(request.targets)}),
        "hooks": [*map(str, capture.hooks.programs), str(request.root) if capture.hooks.programs else ""],
        "extra_bins": capture.extra_bins,
    }


def _requested(capture: CaptureConfig) -> tuple[str, ...]:
    """What not every image has, by the names in pyclosure.ON_REQUEST."""
    sealed = ("cryptography",) if capture.encrypt_to else ()
    remote = ("paramiko",) if network.asks_for_ssh(capture) else ()
    return (*pyclosure.requested_by(capture.dump), *sealed, *remote)


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
    tree, told = gather(request), _settings(request, wanted, None)
    _add_kernel_files(tree, request, wanted)
    files = _sorted(*tree.records(), *told.records())
    told.add_text(MANIFEST_PATH, manifest_json(image_id(files), request.kernel.release, kdumpd.__version__, files))
    try:
        squash.place_files((*tools.staged(tree), *told.entries.values()), folder)
    except OSError as error:
        raise BuildError(f"{error.filename} cannot be written: {os_reason(error)}", hint=f"df -h {folder}") from error


def gather(request: BuildRequest, prepared: pyclosure.Begun | None = None) -> contents.Tree:
    """All entries of our own that are the same for each kernel. Raises BuildError naming what is missing."""
    own = request.builder is Builder.BUSYBOX
    tree = contents.skeleton(find_init(), "init" if own else "kdumpd/init")
    busybox = contents.find_busybox("the capture image")
    applets = applets_of(busybox)
    elfs = contents.add_busybox(tree, applets, busybox)
    network.add_tools(tree, request.capture, applets)
    elfs += storage.add_tools(tree, request.targets)
    network.add_trust(tree, request.capture, request.root)
    closure = pyclosure.find_closure(
        request.interpreter, pyclosure.PACKAGE_DIR, request.collector_modules, _requested(request.capture), prepared
    )
    elfs += programs.add_programs(tree, request.capture.hooks, request.capture.extra_bins, request.root)
    elfs += contents.add_python(tree, closure, pyclosure.PACKAGE_DIR, request.interpreter)
    contents.add_libraries(tree, elfs, closure.mapped)
    return tree


def _settings(request: BuildRequest, wanted: Wanted, before: reuse.Before | None) -> contents.Tree:
    """What lies in the overlay, and nothing else."""
    release = request.kernel.release
    tree = contents.settings(request.capture, [contents.module_place(release, path) for path in wanted.modules])
    if wanted.watchdogs:
        places = (contents.module_place(release, path) for path in wanted.watchdogs)
        tree.add_text(WATCHDOGS_PATH, "".join(f"{place}\n" for place in places))
    # The same for each boot of a kernel, and slow to find.
    known = None if before is None else before.settings.get(kernel_facts.PATH)
    if known is not None:
        tree.add(known)
        return tree
    facts = kernel_facts.running_kernel_facts(release, request.root)
    if facts is not None:
        tree.add_text(kernel_facts.PATH, facts.to_json())
    return tree


def _add_kernel_files(tree: contents.Tree, request: BuildRequest, wanted: Wanted) -> None:
    release = request.kernel.release
    # Another tool has firmware of its own, in the usual place.
    firmware = contents.FIRMWARE if request.builder is Builder.BUSYBOX else "usr/lib/firmware"
    contents.add_modules(tree, wanted.index, release, wanted.modules, request.root, firmware)
    if wanted.early is not None:
        contents.add_early_modules(tree, wanted.index, release, wanted.early)


def _new_base(
    request: BuildRequest, wanted: Wanted, progress: Progress, *, anew: bool, prepared: pyclosure.Begun | None
) -> parts.Base:
    if request.builder is not Builder.BUSYBOX:
        tree = gather(request, prepared)
        tree.notes.extend(wanted.notes)
        _add_kernel_files(tree, request, wanted)
        progress(f"running {request.builder}", 0.2)
        tree = tools.complete(tree, request.builder, request.builder_args, request.kernel)
        return _stock(tree, wanted, progress)
    stock = None if anew else reuse.find_stock(request.output, wanted.stock_key)
    if stock is None:
        stock = _stock(gather(request, prepared), wanted, progress)
    tree = contents.Overlay(notes=list(wanted.notes))
    _add_kernel_files(tree, request, wanted)
    return parts.with_kernel(stock, tree, wanted.compression)


def _stock(tree: contents.Tree, wanted: Wanted, progress: Progress) -> parts.Base:
    progress("packing", 0.4)
    if wanted.early is not None:
        archives, packed, payload = parts.write_squashed(tree.entries, tree.early, wanted.compression)
        tree.entries[payload.path] = payload
    else:
        archives, packed = parts.write_base(tree.entries, wanted.compression)
    notes = tuple(tree.notes)
    return parts.Base(parts=archives, packed=packed, files=tree.records(), notes=notes, stock_notes=len(notes))


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
    archives, packed = parts.write_behind(base, parts.OVERLAY, settings.entries.values(), wanted.compression)
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
        stock_key=wanted.stock_key,
        stock_notes=base.stock_notes,
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
