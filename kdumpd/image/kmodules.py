# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules: which files a kernel needs for a disk and a filesystem, in the order of loading.

Reads what depmod(8) wrote (modules.dep, .alias, .softdep, .builtin). The capture kernel has no modprobe, so
everything that modprobe or the kernel's own module requests would have brought in must be found here.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kdumpd.errors import BuildError
from kdumpd.host import blockdev
from kdumpd.host.blockdev import BlockChain, Device
from kdumpd.host.kernels import Kernel
from kdumpd.host.mounts import ResolvedTarget

_FIXED = re.compile(r"[^*?\[]*")
_CHECKSUMS = {
    "ext2": ("crc32c_generic",),
    "ext3": ("crc32c_generic",),
    "ext4": ("crc32c_generic",),
    "xfs": ("crc32c_generic",),
    "btrfs": ("crc32c_generic", "xxhash_generic", "blake2b_generic", "sha256_generic"),
    "f2fs": ("crc32_generic", "crc32c_generic"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleIndex:
    """depmod's files of one kernel. Names have underscores; paths are relative to the folder of modules.

    `depends` maps a module's name to (path, paths of all it depends on, nearest first).
    """

    folder: Path
    depends: Mapping[str, tuple[str, tuple[str, ...]]]
    builtin: frozenset[str]
    aliases: tuple[tuple[str, str], ...]
    builtin_aliases: tuple[tuple[str, str], ...]
    softdeps: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

    def lacks(self, name: str) -> bool:
        """Whether the kernel has no such module, neither to load nor built in."""
        return name not in self.depends and name not in self.builtin

    def by_alias(self, wanted: str) -> list[str]:
        """The loadable modules whose aliases match, none if built-in code has the alias."""
        if self.is_builtin_alias(wanted):
            return []
        found = {name: None for pattern, name in self.aliases if _matches(wanted, pattern)}
        return list(found)

    def is_builtin_alias(self, wanted: str) -> bool:
        """Whether code built into the kernel has the alias."""
        return any(_matches(wanted, pattern) for pattern, _ in self.builtin_aliases)


def _matches(wanted: str, pattern: str) -> bool:
    """As fnmatch has it, which keeps each pattern that it was ever asked about as a compiled one, 0.7 KB each, and a
    kernel has tens of thousands of them. Nearly all differ before their first wildcard already.
    """
    fixed = _FIXED.match(pattern)
    return wanted.startswith(fixed[0] if fixed else "") and fnmatch.fnmatchcase(wanted, pattern)


def module_name(path: str) -> str:
    """The name of a module file as the kernel spells it: "virtio-rng.ko.xz" is virtio_rng."""
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def parse_dep(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """modules.dep: name -> (path, dependencies)."""
    found = {}
    for line in text.splitlines():
        path, separator, rest = line.partition(":")
        if separator:
            found[module_name(path)] = (path, tuple(rest.split()))
    return found


def parse_aliases(text: str) -> tuple[tuple[str, str], ...]:
    """modules.alias: (pattern, module name)."""
    words = (line.split() for line in text.splitlines() if line.startswith("alias "))
    return tuple((fields[1], fields[2].replace("-", "_")) for fields in words if len(fields) == 3)


def parse_builtin_modinfo(text: str) -> tuple[tuple[str, str], ...]:
    """modules.builtin.modinfo: the aliases in it, as (pattern, module name)."""
    found = []
    for record in text.split("\0"):
        key, separator, value = record.partition("=")
        name, dot, field = key.partition(".")
        if separator and dot and field == "alias":
            found.append((value, name.replace("-", "_")))
    return tuple(found)


def parse_softdep(text: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """modules.softdep: name -> (what to load before, what to load after)."""
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or words[0] != "softdep":
            continue
        lists: dict[str, list[str]] = {"pre:": [], "post:": []}
        current: list[str] = []
        for word in words[2:]:
            if word in lists:
                current = lists[word]
            else:
                current.append(word.replace("-", "_"))
        found[words[1].replace("-", "_")] = (tuple(lists["pre:"]), tuple(lists["post:"]))
    return found


def read_index(kernel: Kernel) -> ModuleIndex:
    """depmod's files of `kernel`. Raises BuildError when modules.dep is missing: nothing can be ordered then."""
    folder = kernel.modules
    try:
        dep = (folder / "modules.dep").read_text()
    except OSError as error:
        raise BuildError(
            f"the modules of kernel {kernel.release} have no index: {error}", hint=f"depmod {kernel.release}"
        ) from error
    return ModuleIndex(
        folder=folder,
        depends=parse_dep(dep),
        builtin=frozenset(module_name(line) for line in _optional(folder / "modules.builtin").splitlines()),
        aliases=parse_aliases(_optional(folder / "modules.alias")),
        builtin_aliases=parse_builtin_modinfo(_optional(folder / "modules.builtin.modinfo")),
        softdeps=parse_softdep(_optional(folder / "modules.softdep")),
    )


def modules_for(
    index: ModuleIndex,
    targets: Iterable[ResolvedTarget],
    kernel_config: Mapping[str, str] | None,
    root: Path,
    notes: list[str] | None = None,
    extra: Iterable[str] = (),
) -> tuple[str, ...]:
    """As needed_modules, for all of `targets`, whose devices are looked at below `root`; then those named `extra`.

    A target for which this kernel lacks a driver becomes a sentence in `notes`, as long as another one can be used, and
    so does an extra module that it lacks.
    """
    names: list[str] = []
    failed: list[BuildError] = []
    good = 0
    for target in targets:
        try:
            names.extend(_for_target(index, target, kernel_config, root))
            good += 1
        except BuildError as error:
            failed.append(error)
            if notes is not None:
                notes.append(f"dumps cannot go to {target.destination}: {error.sentence}")
    if failed and not good:
        raise failed[0]
    for name in (name.replace("-", "_") for name in extra):
        names.append(name)
        if notes is not None and index.lacks(name):
            notes.append(f"the kernel has no module {name}, which extra_modules names")
    return order(index, names)


def for_watchdogs(index: ModuleIndex, names: Iterable[str], notes: list[str] | None = None) -> tuple[str, ...]:
    """The paths of the drivers `names` of armed watchdogs. One that this kernel lacks becomes a sentence in `notes`."""
    names = tuple(names)
    for name in names:
        if notes is not None and index.lacks(name):
            notes.append(f"the kernel has no driver {name}: that watchdog, which is armed, may end a capture early")
    return order(index, names)


def _for_target(
    index: ModuleIndex, target: ResolvedTarget, kernel_config: Mapping[str, str] | None, root: Path
) -> list[str]:
    names: list[str] = []
    if target.stack is not None:
        for disk in target.stack.disks:
            names.extend(_names_for(index, blockdev.read_chain(disk, root), None, kernel_config))
        names.extend(_layer_module(index, name) for name in target.stack.modules)
        names.extend(target.stack.ciphers)
    elif target.block is not None:
        names.extend(_names_for(index, blockdev.read_chain(target.block, root), None, kernel_config))
    if target.shared:
        for chain in blockdev.virtiofs_chains(root):
            names.extend(_names_for(index, chain, None, kernel_config))
    return [*names, *_names_for(index, None, target.fstype, kernel_config)]


def named(index: ModuleIndex, name: str) -> list[str]:
    """The module called `name`; none when it is built in. Raises BuildError when this kernel has it in no form."""
    if name in index.builtin:
        return []
    if name not in index.depends:
        raise BuildError(
            f"the kernel in {index.folder} has no module {name}, which the target needs",
            hint="install the package with this kernel's further modules, or choose another target",
        )
    return [name]


def _layer_module(index: ModuleIndex, name: str) -> str:
    if name not in index.depends and name not in index.builtin:
        raise BuildError(
            f"the kernel in {index.folder} has no {name}, which the target's disks are put together with",
            hint="install the package with this kernel's further modules, or choose another target",
        )
    return name


def needed_modules(
    index: ModuleIndex, chain: BlockChain | None, fstype: str | None, kernel_config: Mapping[str, str] | None
) -> tuple[str, ...]:
    """Paths of the modules for the disk and the filesystem, each after what it depends on.

    Raises BuildError naming a driver or filesystem this kernel has neither as a module nor built in.
    """
    return order(index, _names_for(index, chain, fstype, kernel_config))


def _names_for(
    index: ModuleIndex, chain: BlockChain | None, fstype: str | None, kernel_config: Mapping[str, str] | None
) -> list[str]:
    names: list[str] = []
    for device in () if chain is None else reversed(chain.devices):
        names.extend(for_device(index, device))
    if fstype is not None:
        names.extend(_for_filesystem(index, fstype, kernel_config or {}))
    return names


def order(index: ModuleIndex, names: Iterable[str]) -> tuple[str, ...]:
    """The paths of `names` and of all they depend on, hard and soft, in the order of loading."""
    ordered: dict[str, None] = {}
    under_way: set[str] = set()

    def visit(name: str) -> None:
        if name in index.builtin or name in under_way or name not in index.depends:
            return
        under_way.add(name)
        path, depends = index.depends[name]
        before, after = index.softdeps.get(name, ((), ()))
        for soft in before:
            visit_soft(soft)
        for dependency in reversed(depends):
            visit(module_name(dependency))
        ordered.setdefault(path)
        for soft in after:
            visit_soft(soft)

    def visit_soft(soft: str) -> None:
        for found in [soft] if soft in index.depends else _soft_names(index, soft):
            visit(found)

    for name in names:
        visit(name)
    return tuple(ordered)


def read_module(path: Path) -> bytes:
    """The bytes of a module, unpacked: not every kernel unpacks modules itself. Raises BuildError."""
    # The service asks here which modules are needed, and reads none: it need not hold three decompressors for that.
    import gzip
    import lzma

    from kdumpd.image.pack import load_zstandard

    zstandard = load_zstandard()
    try:
        data = path.read_bytes()
        if path.name.endswith(".xz"):
            data = lzma.decompress(data)
        elif path.name.endswith(".gz"):
            data = gzip.decompress(data)
        elif path.name.endswith(".zst"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise BuildError(
            f"the kernel module {path} cannot be read: {error}", hint="install the kernel's package again"
        ) from error
    if not data.startswith(b"\x7fELF"):
        raise BuildError(f"the kernel module {path} is damaged", hint="install the kernel's package again")
    return data


def _soft_names(index: ModuleIndex, soft: str) -> list[str]:
    # An alias is spelled with dashes as often as with underscores.
    return index.by_alias(soft) or index.by_alias(soft.replace("_", "-"))


def for_device(index: ModuleIndex, device: Device) -> list[str]:
    """The modules for one device: its driver's, or by its modalias if this kernel names things differently."""
    if device.driver is None:
        return []
    plain = device.driver.replace("-", "_")
    for name in (device.module, plain, f"{plain}_mod"):
        if name is not None and name in index.builtin:
            return []
        if name is not None and name in index.depends:
            return [name]
    found = [] if device.modalias is None else index.by_alias(device.modalias)
    if found or device.module is None:
        return found
    if device.modalias is not None and index.is_builtin_alias(device.modalias):
        return []
    raise BuildError(
        f"the target's disk needs the driver {device.module} ({device.path}),"
        f" which the kernel in {index.folder} does not have",
        hint="install the package with this kernel's further modules, or choose another target",
    )


def _for_filesystem(index: ModuleIndex, fstype: str, kernel_config: Mapping[str, str]) -> list[str]:
    names = _filesystem_modules(index, fstype)
    if fstype in {"vfat", "msdos"}:
        # The kernel asks for character sets by name when it mounts; there is no modprobe to answer.
        page = kernel_config.get("CONFIG_FAT_DEFAULT_CODEPAGE", "437")
        charset = kernel_config.get("CONFIG_FAT_DEFAULT_IOCHARSET", "iso8859-1")
        sets = (f"nls_cp{page}", f"nls_{charset.replace('-', '_')}", "nls_utf8")
        names.extend(name for name in sets if name in index.depends)
    # Asked of the crypto layer by name at mount, where it is not built in.
    names[:0] = [name for name in _CHECKSUMS.get(fstype, ()) if name in index.depends]
    return names


def _filesystem_modules(index: ModuleIndex, fstype: str) -> list[str]:
    name = fstype.replace("-", "_")
    if name in index.builtin:
        return []
    if name in index.depends:
        return [name]
    alias = f"fs-{fstype}"
    found = index.by_alias(alias)
    if not found and not index.is_builtin_alias(alias):
        raise BuildError(
            f"the kernel in {index.folder} has no {fstype} filesystem, which the target needs",
            hint="install the package with this kernel's further modules, or choose another target",
        )
    return found


def _optional(path: Path) -> str:
    """The text of a file that a kernel may lack; its absence only means that there are no such facts."""
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""
