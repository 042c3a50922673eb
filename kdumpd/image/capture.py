# SPDX-License-Identifier: GPL-2.0-or-later
"""What the capture kernel is told, put together from kdump.conf, the resolved targets and the hooks; and
where init lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kdumpd.config.capture import CaptureConfig, Fence
from kdumpd.config.model import Config, Hooks
from kdumpd.errors import BuildError
from kdumpd.host.files import below
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.host.watchdogs import read_armed

SEARCH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")  # where programs that are named without a folder are looked for
# Where fence-agents of RHEL, of Debian and of SUSE have it.
_FENCE_SEND = (
    "/usr/libexec/fence_kdump_send",
    "/usr/libexec/fence-agents/fence_kdump_send",
    "/usr/lib/fence_kdump_send",
)
_HOOKS_DIR = "/etc/kdump"
# A checkout is asked first, so that what is tried out there is what runs.
_PLACES = (Path(__file__).resolve().parents[2], Path("/usr/share/kdumpd"), Path("/usr/local/share/kdumpd"))


def capture_config(
    config: Config, resolved: Sequence[ResolvedTarget], hostname: str, release: str, root: Path = Path("/")
) -> CaptureConfig:
    """The settings of a capture by kernel `release` on machine `hostname`, whose hooks are looked for below `root`."""
    fence = _fence(config, root)
    return CaptureConfig(
        hostname=hostname,
        kernel=release,
        destinations=tuple(target.destination for target in resolved),
        dump=config.dump,
        final_action=config.final_action,
        failure_action=config.failure_action,
        encrypt_to=config.encrypt_to,
        deadlines=config.deadlines,
        hooks=read_hooks(config, root),
        extra_bins=tuple(dict.fromkeys((*_external(config), *_programs(fence), *config.extra_bins))),
        extra_modules=config.extra_modules,
        watchdogs=read_armed(root),
        layout=config.layout,
        fence=fence,
    )


def _external(config: Config) -> tuple[str, ...]:
    """The program that makes the dump, if that is another one; where it is not found, a place to complain of."""
    if not config.dump.external:
        return ()
    name = config.dump.external[0]
    if name.startswith("/"):
        return (name,)
    places = (f"{folder}/{name}" for folder in SEARCH)
    return (next((place for place in places if os.access(place, os.X_OK)), f"/usr/bin/{name}"),)


def _fence(config: Config, root: Path) -> Fence | None:
    """Whom to tell, and with what; where the program is not found, a place to complain of."""
    if not config.fence_nodes:
        return None
    found = (place for place in _FENCE_SEND if any(os.access(path, os.X_OK) for path in (below(root, place), place)))
    return Fence(program=next(found, _FENCE_SEND[0]), nodes=config.fence_nodes, args=config.fence_args)


def _programs(fence: Fence | None) -> tuple[str, ...]:
    return () if fence is None else (fence.program,)


def read_hooks(config: Config, root: Path = Path("/")) -> Hooks:
    """The programs of kdump.conf and those in /etc/kdump/{pre,post,emergency}.d that may be executed, by name."""

    def named(path: str | None) -> tuple[str, ...]:
        return () if path is None else (path,)

    return Hooks(
        kdump_pre=named(config.kdump_pre),
        pre=_folder("pre.d", root),
        post=_folder("post.d", root),
        kdump_post=named(config.kdump_post),
        emergency=_folder("emergency.d", root),
        kdump_emergency=named(config.kdump_emergency),
    )


def _folder(name: str, root: Path) -> tuple[str, ...]:
    folder = below(root, f"{_HOOKS_DIR}/{name}")
    try:
        found = sorted(path for path in folder.iterdir() if path.is_file() and os.access(path, os.X_OK))
    except OSError:
        return ()
    return tuple(f"{_HOOKS_DIR}/{name}/{path.name}" for path in found if " " not in path.name)


def find_init() -> Path:
    """The init script of the capture image. Raises BuildError when kdumpd is not installed whole."""
    return find_shared("busybox/init")


def find_shared(name: str, places: tuple[Path, ...] = _PLACES) -> Path:
    """What of kdumpd's folder "initramfs" is called `name`. Raises BuildError when kdumpd is not installed whole."""
    for place in places:
        if (place / "initramfs" / name).exists():
            return place / "initramfs" / name
    raise BuildError(
        f"a part of the capture image is missing: no initramfs/{name} in {' or '.join(map(str, places))}",
        hint="install kdumpd again",
    )
