# SPDX-License-Identifier: GPL-2.0-or-later
"""Installed kernels: where the image, the modules and the build configuration of a release lie.

Knows the places distributions use. Does not choose a kernel and does not look into the image.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
from pathlib import Path

from kdumpd.errors import NotFoundError

_IMAGES = ("boot/vmlinuz-{}", "usr/lib/modules/{}/vmlinuz", "lib/modules/{}/vmlinuz", "boot/vmlinux-{}")
_MODULES = ("usr/lib/modules/{}", "lib/modules/{}")
_CONFIGS = ("boot/config-{}", "usr/lib/modules/{}/config", "lib/modules/{}/config")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel release, its bootable image and its folder of modules."""

    release: str
    image: Path
    modules: Path


def find_kernel(release: str, root: Path = Path("/")) -> Kernel:
    """The kernel `release` below `root`. Raises NotFoundError naming the part that is missing."""
    if not release or "/" in release or release in {".", ".."}:
        raise NotFoundError(f"{release!r} is not the name of a kernel release", hint="`uname -r` shows one")
    image = _first(root, _IMAGES, release)
    if image is None:
        places = " or ".join("/" + place.format(release) for place in _IMAGES[:2])
        raise NotFoundError(
            f"kernel {release} has no image at {places}", hint="install the package of that kernel again"
        )
    modules = _first(root, _MODULES, release)
    if modules is None or not modules.is_dir():
        raise NotFoundError(
            f"kernel {release} has no modules in /lib/modules/{release}",
            hint="install the package of that kernel again",
        )
    return Kernel(release=release, image=image, modules=modules)


def parse_kernel_config(text: str) -> dict[str, str]:
    """CONFIG_X -> its value ("y", "m", a number, text without its quotes); what is not set is left out."""
    options = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and name.startswith("CONFIG_"):
            options[name] = value.strip().strip('"')
    return options


def read_kernel_config(release: str, root: Path = Path("/")) -> dict[str, str] | None:
    """The build configuration of kernel `release`; None when the machine does not have it.

    Besides the file beside the kernel there is /proc/config.gz (CONFIG_IKCONFIG_PROC), of the running one.
    """
    path = _first(root, _CONFIGS, release)
    if path is not None:
        return parse_kernel_config(path.read_text(errors="replace"))
    running = root / "proc/config.gz"
    if root == Path("/") and release == os.uname().release and running.exists():
        return parse_kernel_config(gzip.decompress(running.read_bytes()).decode(errors="replace"))
    return None


def _first(root: Path, places: tuple[str, ...], release: str) -> Path | None:
    return next((path for place in places if (path := root / place.format(release)).exists()), None)
