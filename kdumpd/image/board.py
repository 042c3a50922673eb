# SPDX-License-Identifier: GPL-2.0-or-later
"""The capture image of a board: its own kernel, a sysroot of its distribution, and no machine to look at.

What the service finds out from sysfs is told here: the target by its name, drivers by their names. The image is the
busybox one; what it is made of comes from the sysroot alone, but for kdumpd itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import mmap
import os
import re
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import kdumpd
from kdumpd.config.capture import CaptureConfig, LocalDestination
from kdumpd.errors import BuildError, LoadError, NotFoundError, UnsupportedError, os_reason
from kdumpd.host.fdt import DeviceTree
from kdumpd.host.kernel_image import KernelHeader, read_header, unpacked
from kdumpd.host.kernels import Kernel, is_release, parse_kernel_config
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import contents, cpio, elf, kernel_facts, kmodules, pack, probe, programs, pyclosure, verify
from kdumpd.image.builder import NEEDED_OPTIONS, applets_of
from kdumpd.image.capture import find_init
from kdumpd.image.origin import PYTHON, Origin, applets
from kdumpd.image.record import MANIFEST_PATH, MODULES_PATH, image_id, manifest_json
from kdumpd.image.tree_modules import tree_modules

_OLDEST_PYTHON = (3, 11)
# What the kernel that loads and the one that captures have to be able to do, which are one here.
_LOADING = {"CONFIG_CRASH_DUMP": "be a capture kernel"}
_LOADS = ("CONFIG_KEXEC", "CONFIG_KEXEC_FILE")
_FILESYSTEMS = {"ext2": "EXT4", "ext3": "EXT4", "ext4": "EXT4", "xfs": "XFS", "btrfs": "BTRFS", "vfat": "VFAT"}
_BANNER = re.compile(rb"Linux version ([0-9][^ \0]{0,127}) ")
_CONFIG_START, _CONFIG_END = b"IKCFG_ST", b"IKCFG_ED"  # kernel/configs.c
_ELF_ARCHES = {
    "EM_AARCH64": "aarch64",
    "EM_X86_64": "x86_64",
    "EM_PPC64": "ppc64le",
    "EM_S390": "s390x",
    "EM_RISCV": "riscv64",
}
# Ways to attach a disk, and the modules that bring it up on machines that describe their buses. Those that a kernel
# lacks are left out; what is built in needs none.
DISKS: Mapping[str, tuple[str, ...]] = {
    "usb": (
        *("xhci_pci", "xhci_plat_hcd", "ehci_pci", "ehci_platform", "ohci_platform", "dwc2", "dwc3"),
        *("usb_storage", "uas", "sd_mod"),
    ),
    "mmc": ("sdhci_pci", "sdhci_acpi", "sdhci_iproc", "sdhci_of_arasan", "dw_mmc_pltfm", "mmc_block"),
    "nvme": ("nvme",),
    "virtio": ("virtio_pci", "virtio_mmio", "virtio_blk"),
    "ata": ("ahci", "ahci_platform", "sd_mod"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoardKernel:
    """A kernel file that belongs to no package. `config` is None where nobody can tell how it was built."""

    image: Path
    release: str
    header: KernelHeader
    config: Mapping[str, str] | None

    @property
    def arch(self) -> str:
        """As uname -m has it."""
        return self.header.arch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoardRequest:
    """What to build. `modules` is the folder with depmod's files, None when all is built in; `drivers` are modules to
    load before those that `tree` asks for and those of `disks` (names in DISKS; empty for all).
    """

    kernel: BoardKernel
    capture: CaptureConfig
    origin: Origin
    modules: Path | None
    tree: DeviceTree | None = None
    disks: Sequence[str] = ()
    drivers: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoardImage:
    """The packed image, and what there is to say of it; `modules` in the order of loading."""

    packed: bytes
    compression: str
    unpacked_bytes: int
    image_id: str
    modules: tuple[str, ...]
    notes: tuple[str, ...]


def read_kernel(image: Path, arch: str | None, config: Path | None) -> BoardKernel:
    """Looks into a kernel file. Raises LoadError when it is none, or none for `arch`; BuildError, NotFoundError."""
    header = _header(image, arch)
    data = _whole(image, header)
    found = _bzimage_version(data) if header.arch == "x86_64" else _BANNER.search(data)
    if found is None:
        raise LoadError(f"{image} does not say which release it is", hint="name the board's Image file")
    release = found[1].decode("ascii", errors="replace")
    if not is_release(release):
        raise LoadError(f"{image} calls itself {release!r}, which is no kernel release")
    return BoardKernel(image=image, release=release, header=header, config=_config(data, config))


def _header(image: Path, arch: str | None) -> KernelHeader:
    if not image.is_file():
        raise NotFoundError(f"there is no kernel {image}", hint="name the file that the board's boot loader starts")
    for name in [arch] if arch is not None else sorted(set(_ELF_ARCHES.values())):
        try:
            header = read_header(image, name)
        except LoadError:
            if arch is not None:
                raise
            continue
        if header is not None:
            return header
    raise LoadError(f"{image} is not a Linux kernel that kdumpd knows", hint="name the board's Image file")


def _bzimage_version(data: mmap.mmap) -> re.Match[bytes] | None:
    """An x86 kernel is packed, but for its version (kernel_version in Documentation/arch/x86/boot.rst)."""
    (offset,) = struct.unpack_from("<H", data, 0x20E)
    return re.compile(rb"([0-9][^ \0]{0,127})").match(data, 0x200 + offset) if offset else None


def _whole(image: Path, header: KernelHeader) -> mmap.mmap:
    with image.open("rb") as file:
        if header.packed is None:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        fd = unpacked(file.fileno(), header, str(image))
    try:
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)


def _config(data: mmap.mmap, file: Path | None) -> dict[str, str] | None:
    """The configuration in `file`, else the one a kernel with CONFIG_IKCONFIG carries."""
    if file is not None:
        try:
            return parse_kernel_config(file.read_text(errors="replace"))
        except OSError as error:
            raise BuildError(f"the kernel configuration {file} cannot be read: {os_reason(error)}") from error
    start = data.find(_CONFIG_START)
    end = data.find(_CONFIG_END, start)
    if start < 0 or end < 0:
        return None
    try:
        return parse_kernel_config(gzip.decompress(data[start + len(_CONFIG_START) : end]).decode(errors="replace"))
    except (OSError, EOFError, zlib.error):
        return None  # those letters by accident


def find_modules(request: Path | None, kernel: BoardKernel, origin: Origin) -> Path | None:
    """The folder of the kernel's modules: the one that was named, or a root folder above it, else the sysroot's.

    None when there are none. Raises NotFoundError when a named one holds no modules of this kernel.
    """
    inner = f"lib/modules/{kernel.release}"
    if request is None:
        found = Path(origin.place(f"/{inner}"))
        return found if (found / "modules.dep").is_file() else None
    for place in (request, request / kernel.release, request / inner, request / "usr" / inner):
        if (place / "modules.dep").is_file():
            return place
    raise NotFoundError(
        f"{request} holds no modules.dep of kernel {kernel.release}",
        hint=f"make modules_install INSTALL_MOD_PATH={request}, or: depmod -b {request} {kernel.release}",
    )


def build(request: BoardRequest) -> BoardImage:
    """Makes the image and checks it. Raises BuildError or UnsupportedError with what is missing."""
    kernel, origin = request.kernel, request.origin
    _require_options(kernel)
    _require_arch(kernel, origin)
    tree = contents.skeleton(find_init(), "init")
    facts = kernel_facts.running_kernel_facts(kernel.release, origin.root)
    if facts is not None:  # built on the board itself
        tree.add_text(kernel_facts.PATH, facts.to_json())
    index = _index(request)
    paths = _modules(request, index)
    contents.add_modules(tree, index, kernel.release, paths)
    places = [contents.module_place(kernel.release, path) for path in paths]
    tree.entries |= contents.settings(request.capture, places).entries
    elfs = _add_busybox(tree, origin)
    with origin.python(kernel.arch) as interpreter, _staged(origin) as package:
        try:
            _require_version(interpreter, origin)
            requested = pyclosure.requested_by(request.capture.dump)
            found = pyclosure.find_closure(interpreter, package, requested=requested)
            closure = _of_origin(found, origin, Path(interpreter).parent)
            elfs += contents.add_python(tree, closure, package, interpreter, origin)
        except BuildError as error:
            raise _renamed(error, interpreter, origin.place(PYTHON)) from error
    capture = request.capture
    elfs += programs.add_programs(tree, capture.hooks, capture.extra_bins, origin.root, origin)
    contents.add_libraries(tree, elfs, closure.mapped, origin)
    return _packed(tree, kernel)


def _renamed(error: BuildError, program: str, shown: str) -> BuildError:
    """The error with `shown` in the place of `program`, whose name tells nobody anything."""
    hint = None if error.hint is None else error.hint.replace(program, shown)
    return BuildError(error.sentence.replace(program, shown), hint=hint)


def _packed(tree: contents.Tree, kernel: BoardKernel) -> BoardImage:
    files = tree.records()
    name = image_id(files)
    text = manifest_json(name, kernel.release, kdumpd.__version__, files)
    tree.add(cpio.Entry(path=MANIFEST_PATH, mode=stat.S_IFREG | 0o600, content=text.encode()))
    archive = cpio.write(tree.entries.values())
    compression = pack.choose(kernel.config)
    packed = pack.pack(archive, compression)
    verify.check_contents({entry.path: entry for entry in cpio.read(pack.unpack(packed, compression))})
    modules = tree.entries[MODULES_PATH].content.decode().splitlines()
    return BoardImage(
        packed=packed, compression=compression, unpacked_bytes=len(archive), image_id=name, modules=tuple(modules),
        notes=tuple(tree.notes),
    )  # fmt: skip


def _require_options(kernel: BoardKernel) -> None:
    if kernel.config is None:
        return
    for option, purpose in {**NEEDED_OPTIONS, **_LOADING}.items():
        if kernel.config.get(option) != "y":
            raise UnsupportedError(
                f"kernel {kernel.release} cannot {purpose}: it was built without {option}",
                hint=f"build it with {option}=y",
            )
    by_file = kernel.config.get("CONFIG_KEXEC_FILE") == "y"
    if not by_file and kernel.config.get("CONFIG_PROC_KCORE") != "y":
        raise UnsupportedError(
            f"kernel {kernel.release} does not say where it maps its memory: it was built without CONFIG_PROC_KCORE",
            hint="build it with CONFIG_PROC_KCORE=y or CONFIG_KEXEC_FILE=y",
        )
    if not any(kernel.config.get(option) == "y" for option in _LOADS):
        raise UnsupportedError(
            f"kernel {kernel.release} cannot load a capture kernel: it was built without {' and '.join(_LOADS)}",
            hint="build it with CONFIG_KEXEC=y",
        )


def _require_arch(kernel: BoardKernel, origin: Origin) -> None:
    """The kernel has to be able to run the sysroot's programs."""
    if not origin.is_file(PYTHON):
        raise BuildError(
            f"there is no {PYTHON} in {origin.root}", hint="install python3, python3-numpy and python3-zstandard there"
        )
    place = origin.place(PYTHON)
    facts = elf.parse_elf(Path(place).read_bytes(), place)
    arch = None if facts is None else _ELF_ARCHES.get(facts.machine[0])
    if arch != kernel.arch:
        raise BuildError(
            f"{kernel.image} is a kernel for {kernel.arch}, {place} is a program for {arch or 'another machine'}",
            hint="name the root filesystem of the board with --root",
        )


def _require_version(interpreter: str, origin: Origin) -> None:
    named = re.search(r"/python3\.(\d+)$", origin.real(PYTHON))
    if named is not None:
        version = (3, int(named[1]))  # starting it takes seconds where it is emulated
    else:
        script = "import json, sys; json.load(sys.stdin); print(json.dumps(sys.version_info[:2]))"
        version = tuple(probe.run_python(interpreter, script, None, f"starting the Python in {origin.root}"))
    if version < _OLDEST_PYTHON:
        raise BuildError(
            f"the Python in {origin.root} is {'.'.join(map(str, version))}, kdumpd needs 3.11 or newer",
            hint="use a newer release of the board's distribution",
        )


def _index(request: BoardRequest) -> kmodules.ModuleIndex:
    kernel = request.kernel
    if request.modules is not None:
        return kmodules.read_index(Kernel(release=kernel.release, image=kernel.image, modules=request.modules))
    if request.drivers:
        raise NotFoundError(
            f"kernel {kernel.release} has no folder of modules to take {request.drivers[0]} from",
            hint="name it with --modules",
        )
    # Nothing can be loaded: the filesystems are there, or they are not.
    for destination in request.capture.destinations:
        option = f"CONFIG_{_FILESYSTEMS.get(getattr(destination, 'fstype', ''), '')}_FS"
        if isinstance(destination, LocalDestination) and kernel.config is not None and kernel.config.get(option) != "y":
            raise BuildError(
                f"kernel {kernel.release} has no {destination.fstype} built in ({option}), which the target needs",
                hint="name the folder of its modules with --modules",
            )
    return kmodules.ModuleIndex(
        folder=Path("/nonexistent"), depends={}, builtin=frozenset(), aliases=(), builtin_aliases=(), softdeps={}
    )


def _modules(request: BoardRequest, index: kmodules.ModuleIndex) -> tuple[str, ...]:
    if request.modules is None:
        return ()
    for name in request.drivers:
        plain = name.replace("-", "_")
        if plain not in index.depends and plain not in index.builtin:
            raise NotFoundError(
                f"kernel {request.kernel.release} has no module {name}", hint=f"look at {request.modules}/modules.dep"
            )
    disks = [name for disk in request.disks or DISKS for name in DISKS[disk]]
    described = () if request.tree is None else tree_modules(request.tree, index)
    names = [name.replace("-", "_") for name in (*request.drivers, *described, *disks)]
    targets = [ResolvedTarget(destination=destination, block=None) for destination in request.capture.destinations]
    drivers = kmodules.order(index, names)
    others = kmodules.modules_for(
        index, targets, dict(request.kernel.config or {}), request.origin.root, extra=request.capture.extra_modules
    )
    return tuple(dict.fromkeys((*drivers, *others)))


def _add_busybox(tree: contents.Tree, origin: Origin) -> list[str]:
    busybox = next((place for place in contents.BUSYBOX_PLACES if origin.is_file(place)), None)
    if busybox is None:
        raise BuildError(f"there is no busybox in {origin.root}", hint="install busybox-static there")
    listed = applets_of(busybox) if origin.is_here else applets(Path(origin.place(busybox)).read_bytes())
    return contents.add_busybox(tree, listed, busybox, origin)


@contextlib.contextmanager
def _staged(origin: Origin) -> Iterator[Path]:
    """kdumpd's own files where no sysroot has any, so that those of another version there are not taken for them."""
    if origin.is_here:
        yield pyclosure.PACKAGE_DIR
        return
    with tempfile.TemporaryDirectory(prefix="kdumpd-package-") as folder:
        package = Path(folder) / "kdumpd"
        for path in pyclosure.own_files():
            copy = package / path.relative_to(pyclosure.PACKAGE_DIR)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        yield package


def _of_origin(closure: pyclosure.PythonClosure, origin: Origin, folder: Path) -> pyclosure.PythonClosure:
    """The closure in the paths of the sysroot; byte code lies there, or where `origin.python` has it written.

    Raises BuildError when a file of this machine is among it.
    """

    def cache(path: str | None) -> str | None:
        return path if path is None or Path(path).is_relative_to(folder) else origin.place(path)

    return dataclasses.replace(
        closure,
        sources={origin.inside(path): cache(cached) for path, cached in closure.sources.items()},
        extensions=tuple(map(origin.inside, closure.extensions)),
        mapped=tuple(map(origin.inside, closure.mapped)),
    )
