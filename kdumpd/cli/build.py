# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl build: all that a board needs to capture its crashes, in one folder. Needs no service, and no root."""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from kdumpd.cli import output
from kdumpd.config.capture import LocalDestination
from kdumpd.config.model import Config
from kdumpd.config.parse import parse_config, read_config
from kdumpd.config.targets import LocalTarget
from kdumpd.crashes.text import printable
from kdumpd.errors import ConfigError, LoadError, NotFoundError, UnsupportedError, UsageError, os_reason
from kdumpd.host.cmdline import Wishes, capture_cmdline, read_cmdline
from kdumpd.host.fdt import DeviceTree, parse_fdt
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image.capture import capture_config

_ARCHES = {"arm64": "aarch64", "amd64": "x86_64"}  # Debian's names
_WITH_TREE = frozenset({"aarch64", "riscv64"})
_NAMED = ("LABEL=", "UUID=")
_EXAMPLE = "for example: --target 'ext4 LABEL=CRASHES'"


def build(options: Namespace) -> int:
    """Builds into --out and says what came of it. Raises KdumpError."""
    from kdumpd.image import board, board_folder
    from kdumpd.image.origin import Origin

    started = time.monotonic()
    root = _root(options.root)
    config = _config(options, root)
    kernel = board.read_kernel(options.kernel, _ARCHES.get(options.arch, options.arch), options.kernel_config)
    tree = _tree(options.dtb, kernel.arch)
    targets = _targets(config)
    origin = Origin(root=root)
    image = board.build(
        board.BoardRequest(
            kernel=kernel,
            capture=capture_config(config, targets, _hostname(options.hostname, root), kernel.release, root),
            origin=origin,
            modules=board.find_modules(options.modules, kernel, origin),
            tree=tree,
            disks=options.disk,
            drivers=options.module,
        )
    )
    folder = board_folder.Folder(
        kernel=options.kernel,
        release=kernel.release,
        tree=None if tree is None else options.dtb,
        image=image.packed,
        cmdline=_cmdline(config, tree, kernel.arch, root),
        targets=tuple(str(target.destination) for target in targets),
    )
    board_folder.write(folder, options.out)
    facts = {
        "path": str(options.out),
        "kernel": kernel.release,
        "arch": kernel.arch,
        "command": folder.command,
        "command_line": folder.cmdline,
        "image_id": image.image_id,
        "packed_bytes": len(image.packed),
        "unpacked_bytes": image.unpacked_bytes,
        "modules": list(image.modules),
        "notes": list(image.notes),
        "seconds": round(time.monotonic() - started, 2),
    }
    if options.json != "off":
        output.print_json(facts, options.json)
    else:
        _show(facts)
    return 0


def _show(facts: dict[str, Any]) -> None:
    print(f"{facts['path']}: for kernel {facts['kernel']} ({facts['arch']})")
    modules, notes = facts["modules"], facts["notes"]
    print(f"  image         {facts['packed_bytes'] / 1e6:.1f} MB packed, {len(modules)} kernel modules")
    print(f"  command line  {facts['command_line']}")
    print(f"  load command  {facts['command']}")
    print("  what to do with it is in its README")
    for note in notes:
        print(f"  {printable(note)}")


def _root(root: Path) -> Path:
    if not root.is_dir():
        raise NotFoundError(f"there is no folder {root}", hint="name the root filesystem of the board with --root")
    return root.resolve()


def _config(options: Namespace, root: Path) -> Config:
    """kdump.conf of the board, or FILE, with the target that the command line names."""
    try:
        config = (
            read_config(root)
            if options.config is None
            else parse_config([(str(options.config), options.config.read_text(encoding="utf-8"))])
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{options.config}:0: cannot be read: {reason}") from error
    if options.target is not None:
        named = parse_config([("--target", options.target)])
        if named.problems or not named.targets:
            why = named.problems[0].message if named.problems else f"'{options.target}' names no target"
            raise UsageError(f"--target: {why}", hint=f"write it as in kdump.conf, {_EXAMPLE}")
        config = dataclasses.replace(config, targets=named.targets)
    if config.errors:
        raise ConfigError(str(config.errors[0]), hint="correct it, then try again")
    for problem in config.problems:
        print(f"kdumpctl: {problem}", file=sys.stderr)
    return config


def _targets(config: Config) -> list[ResolvedTarget]:
    """The targets by the names they were given: no device can be looked at."""
    if not config.targets:
        raise ConfigError(
            "kdump.conf names no target, and which disk a board has cannot be seen from here",
            hint=_EXAMPLE,
        )
    found = []
    for target in config.targets:
        if not isinstance(target, LocalTarget):
            raise UnsupportedError(
                f"the image of a board captures to a filesystem on a disk, not to: {target}",
                hint=_EXAMPLE,
            )
        if not target.device.startswith(_NAMED):
            print(
                f"kdumpctl: {target.device} may be another disk after a crash; LABEL=... and UUID=... stay the same",
                file=sys.stderr,
            )
        destination = LocalDestination(device=target.device, fstype=target.fstype, directory=config.path)
        found.append(ResolvedTarget(destination=destination, block=None))
    return found


def _tree(path: Path | None, arch: str) -> DeviceTree | None:
    if path is None:
        if arch in _WITH_TREE:
            raise UsageError(f"a board for {arch} has a device tree: name its file with --dtb")
        return None
    try:
        return parse_fdt(path.read_bytes(), str(path))
    except OSError as error:
        raise LoadError(f"the device tree {path} cannot be read: {os_reason(error)}") from error


def _cmdline(config: Config, tree: DeviceTree | None, arch: str, root: Path) -> str:
    """The capture kernel's command line: from the running kernel's on the board itself, else from the device tree's."""
    running = read_cmdline() if root == Path("/") else ""
    if tree is not None and root != Path("/"):
        running = tree.root.child("chosen").text("bootargs") or ""
    wishes = Wishes(base=config.commandline, remove=config.commandline_remove, append=config.commandline_append)
    cpus = config.nr_cpus
    return capture_cmdline(running, arch, cpus=cpus, wishes=wishes)


def _hostname(named: str | None, root: Path) -> str:
    if named is not None:
        return named
    try:
        return (root / "etc/hostname").read_text().split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return "board"
