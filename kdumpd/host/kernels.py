# SPDX-License-Identifier: GPL-2.0-or-later
"""Installed kernels: where the image, the modules and the build configuration of a release lie.

Knows the places distributions use. Does not choose a kernel and does not look into the image.
"""

from __future__ import annotations

import dataclasses
import os
import re
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


def is_release(name: str) -> bool:
    """True for what may name a kernel release, and a file: no slash, no blank, no control character, no dot first."""
    return re.fullmatch(r"[A-Za-z0-9_+~:@][A-Za-z0-9_.+~:@-]{0,127}", name) is not None


def find_kernel(release: str, root: Path = Path("/")) -> Kernel:
    """The kernel `release` below `root`. Raises NotFoundError naming the part that is missing."""
    if not is_release(release):
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


def installed_kernels(root: Path = Path("/")) -> tuple[Kernel, ...]:
    """All kernels below `root` that have an image and the list of their modules, by release.

    Without modules.dep a package is being unpacked or removed at this moment: such a kernel is not there yet, or not
    any more.
    """
    images = [*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    names = {path.name.removeprefix("vmlinuz-") if path.name != "vmlinuz" else path.parent.name for path in images}
    found = []
    for name in sorted(names):
        try:
            kernel = find_kernel(name, root)
        except NotFoundError:
            continue
        if (kernel.modules / "modules.dep").exists():
            found.append(kernel)
    return tuple(found)


def traces_of_kernel(release: str, root: Path = Path("/")) -> bool:
    """True while there is an image or a folder of modules of that release: it is installed, or half so."""
    return _first(root, _IMAGES, release) is not None or _first(root, _MODULES, release) is not None


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
        import gzip  # rare: a distribution's kernel has the file

        return parse_kernel_config(gzip.decompress(running.read_bytes()).decode(errors="replace"))
    return None


def _first(root: Path, places: tuple[str, ...], release: str) -> Path | None:
    return next((path for place in places if (path := root / place.format(release)).exists()), None)
