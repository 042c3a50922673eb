# SPDX-License-Identifier: GPL-2.0-or-later
"""Where capture images are built that take their files and tools from the host: this host, or another Debian.

Either sees the guest's kernel where its own would lie, by mounts that only the build has. The other Debian is a folder
with what a build needs, configured, kept in the cache and never written to afterwards.
"""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path

from .aptroot import CACHE, KEEPS_OLD_LISTS, AptRoot, run
from .cached import digest, made_once

TOP = Path(__file__).resolve().parents[3]
PACKAGES = (
    "busybox-static", "dracut-core", "initramfs-tools-core", "kmod", "procps", "python3", "python3-numpy",
    "python3-pyelftools", "python3-zstandard", "squashfs-tools",
)  # fmt: skip
# Half of all its files, and no build looks at them.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
_PLACES = ("machine", "output", "kdumpd")
# $1 is the kernel's folder; what follows is called. The newest kernels have nothing in /boot.
_HERE = """
set -e
mount --bind "$1/lib/modules" /usr/lib/modules
[ ! -e "$1/boot" ] || mount --bind "$1/boot" /boot
shift
exec "$@"
"""
# $1 to $5: the other Debian, the kernel, and what becomes _PLACES; what follows is called in it.
_THERE = """
set -e
cd "$1"
for name in dev proc sys; do mount --rbind "/$name" "$name"; done
for name in tmp var/tmp run; do mount -t tmpfs tmpfs "$name"; done
mount --bind "$2/lib/modules" usr/lib/modules
[ ! -e "$2/boot" ] || mount --bind "$2/boot" boot
mount --bind "$3" mnt/machine
mount --bind "$4" mnt/output
mount --bind -o ro "$5" mnt/kdumpd
shift 5
exec chroot . "$@"
"""


@functools.cache
def debian(suite: str) -> Path:
    """The folder of another Debian, from the cache or fresh (about a minute)."""
    apt = AptRoot(suite)
    recipe = [inspect.getsource(_make), *_LEFT_OUT, json.dumps(apt.versions(PACKAGES), sort_keys=True)]
    return made_once(
        CACHE / "chroot", suite, digest("\n".join(recipe)), lambda scratch: _make(apt, scratch / "root"), part="root"
    )


def _make(apt: AptRoot, root: Path) -> None:
    run(
        [
            "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--aptopt={KEEPS_OLD_LISTS}",
            '--aptopt=APT::Install-Recommends "false"', f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT), apt.suite, str(root), *apt.sources,
        ],
        timeout=900,
    )  # fmt: skip
    for name in ("usr/lib/modules", "boot", *(f"mnt/{place}" for place in _PLACES)):
        (root / name).mkdir(parents=True, exist_ok=True)


def build_words(suite: str | None, kernel: Path, machine: Path, output: Path, release: str) -> list[str]:
    """The words that build the image of the machine whose facts lie in `machine`, with the kernel in the folder
    `kernel`, on this host or in the Debian `suite`.
    """
    output.mkdir(mode=0o700, exist_ok=True)
    there = suite is not None
    folder, image, checkout = (f"/mnt/{place}" for place in _PLACES) if there else (str(machine), str(output), str(TOP))
    build = [
        *("/usr/bin/env", f"PYTHONPATH={checkout}", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3"),
        *("-m", "kdumpd.image", "build", "--root", folder, "--kernel", release, "--output", image, "--json"),
    ]
    if suite is None:
        Path("/usr/lib/modules").mkdir(exist_ok=True)
        return ["unshare", "--mount", "sh", "-c", _HERE, "sh", str(kernel), *build]
    places = [str(path) for path in (debian(suite), kernel, machine, output, TOP)]
    return ["unshare", "--mount", "sh", "-c", _THERE, "sh", *places, *build]
