# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files and folders to watch, and what kind of change an event there means. Reads names only, watches nothing.

A file that is replaced by a rename is another inode, so ordinary files are watched through their folders. What does
not exist yet is watched for in the deepest folder on the way that exists.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kdumpd.config import CONFIG_FILE, DROPIN_DIR
from kdumpd.host import inotify
from kdumpd.host.files import below
from kdumpd.host.nextboot import BOOT_FILES, BOOT_FOLDERS
from kdumpd.host.reservation import SIZE_PATHS
from kdumpd.host.sysctl import SYSCTL_PATHS
from kdumpd.service.places import Places
from kdumpd.service.rehearsed import REHEARSAL_NAME
from kdumpd.service.tried import REPORT_NAME

_FOLDER = (
    inotify.CREATE
    | inotify.CLOSE_WRITE
    | inotify.DELETE
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
)

# Programs that load and unload capture kernels: the end of a run closes the program's file.
_LOADERS = ("/usr/sbin/kexec", "/sbin/kexec", "/usr/bin/kexec")
# systemd-networkd and NetworkManager: a file for each interface, written when its state changes; ifupdown.
_NETWORKS = ("/run/systemd/netif/links", "/run/NetworkManager/devices", "/run/network")
# Where udevd shows filesystems that came or went; the kernel's own event comes before.
_LINKS = ("/dev/disk/by-uuid", "/dev/disk/by-label")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Watch `path` for the events in `mask`; `names` are the entries that matter, None for all of them."""

    path: Path
    mask: int
    kind: str
    names: frozenset[str] | None = None


def watch_list(
    places: Places, release: str, *, crashes: Path | None, sources: Iterable[str], network: bool = False
) -> tuple[Rule, ...]:
    """The rules for a machine that runs `release`, with its dumps in `crashes` and an image made of `sources`.

    `network` says that there are targets on the network.
    """
    root = places.root
    return (
        *_config(root),
        *_entries(below(root, "/boot"), "kernel"),
        *_entries(below(root, "/usr/lib/modules"), "kernel"),
        *_entries(below(root, "/lib/modules"), "kernel"),
        *_entries(below(root, f"/usr/lib/modules/{release}"), "kernel"),
        *(_file(below(root, path), "boot") for path in BOOT_FILES),
        *(rule for path in BOOT_FOLDERS for rule in _entries(below(root, path), "boot")),
        *(rule for path in _LINKS for rule in _entries(below(root, path), "block")),
        *_entries(places.state_dir / release, "image"),
        _file(places.state_dir / REHEARSAL_NAME, "rehearsal"),
        *(_network(places) if network else ()),
        *(() if crashes is None else _entries(crashes, "crashes")),
        *_sources(sources),
        *_values(root),
        Rule(path=below(root, "/proc/self/mountinfo"), mask=inotify.MODIFY, kind="mounts"),
    )


def _network(places: Places) -> Iterator[Rule]:
    """The report on the targets, and the files where those who set up the network note what they did: the service sees
    no interfaces, and whoever does not leave notes is seen by the next trial."""
    yield _file(places.run_dir / REPORT_NAME, "targets")
    for folder in _NETWORKS:
        path = below(places.root, folder)
        if path.is_dir():
            yield Rule(path=path, mask=inotify.CLOSE_WRITE | inotify.MOVED_TO | inotify.DELETE, kind="network")


def _config(root: Path) -> Iterator[Rule]:
    """kdump.conf, also where a link leads to, and the folder of its drop-ins."""
    main = root / CONFIG_FILE
    yield _file(main, "config")
    if main.is_symlink():
        yield _file(main.resolve(), "config")
    yield from _entries(root / DROPIN_DIR, "config")


def _sources(sources: Iterable[str]) -> Iterator[Rule]:
    """One rule for each folder that files of the image came from."""
    folders: dict[str, set[str]] = {}
    for path in sources:
        folder, name = os.path.split(path)
        folders.setdefault(folder, set()).add(name)
    for folder, names in folders.items():
        yield Rule(path=Path(folder), mask=_FOLDER, kind="files", names=frozenset(names))


def _values(root: Path) -> Iterator[Rule]:
    """Files of the kernel that somebody writes to, and programs whose end says that a capture kernel may have gone."""
    for path in SYSCTL_PATHS:
        yield Rule(path=below(root, path), mask=inotify.MODIFY, kind="sysctl")
    for path in SIZE_PATHS:
        yield Rule(path=below(root, path), mask=inotify.MODIFY, kind="reservation")
    for path in _LOADERS:
        yield Rule(path=below(root, path), mask=inotify.CLOSE_NOWRITE, kind="loaded")


def _file(path: Path, kind: str) -> Rule:
    """A file, by way of its folder."""
    folder, name = _existing(path.parent, path.name)
    return Rule(path=folder, mask=_FOLDER, kind=kind, names=frozenset({name}))


def _entries(folder: Path, kind: str) -> Iterator[Rule]:
    """Everything in a folder, and the folder itself coming and going."""
    if folder.is_dir():
        yield Rule(path=folder, mask=_FOLDER, kind=kind)
    yield _file(folder, kind)


def _existing(folder: Path, name: str) -> tuple[Path, str]:
    """The deepest folder that exists on the way to `folder`/`name`, and the entry in it to wait for."""
    while not folder.is_dir() and folder != folder.parent:
        folder, name = folder.parent, folder.name
    return folder, name
