# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole kernels, as a machine has them: /boot and /lib/modules of a Debian kernel below a folder."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from . import image
from .aptroot import CACHE, AptRoot, LabError, run
from .cached import digest, made_once
from .kernels import KERNELS, Kernel

_VERSIONED = re.compile(r"linux-(image|binary|modules|base)-\d")
# USB and other hardware that a cloud does not have.
GENERIC = Kernel(suite=image.SUITE, package="linux-image-amd64")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WholeKernel:
    """`root` holds boot/config-RELEASE and lib/modules/RELEASE; `image` is what boots."""

    root: Path
    release: str
    image: Path

    @property
    def modules(self) -> Path:
        """The folder with modules.dep."""
        return self.root / "lib/modules" / self.release


@functools.cache
def whole(name: str) -> WholeKernel:
    """Debian 12's cloud kernels by their series ("6.1", "6.12"), "generic", or one of kernels.KERNELS ("7")."""
    if name in ("6.1", "6.12"):
        base = image.base()
        return WholeKernel(root=base.root, release=base.release(name), image=base.kernel(name))
    kernel = GENERIC if name == "generic" else KERNELS[name]
    apt = AptRoot(kernel.suite, kernel.architecture)
    packages = [package for package in apt.needs(kernel.package, "linux-") if _VERSIONED.match(package)]
    if not packages:
        raise LabError(f"{kernel.suite}: {kernel.package} depends on no kernel")
    release = packages[0].split("-", 2)[2]
    key = digest(inspect.getsource(_unpack) + _VERSIONED.pattern)
    folder = made_once(
        CACHE / "kernels",
        f"whole-{release}",
        key,
        lambda scratch: _unpack(apt, packages, release, scratch),
        part="root",
    )
    places = [folder / f"boot/vmlinuz-{release}", folder / f"usr/lib/modules/{release}/vmlinuz"]
    found = next((path for path in places if path.exists()), None)
    if found is None:
        raise LabError(f"{', '.join(packages)}: no kernel image inside")
    return WholeKernel(root=folder, release=release, image=found)


def _unpack(apt: AptRoot, packages: Sequence[str], release: str, scratch: Path) -> None:
    root = scratch / "root"
    for package in packages:
        run(["dpkg-deb", "-x", str(apt.download(package, scratch)), str(root)], timeout=300)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    run(["depmod", "-b", str(root), release], timeout=300)


def load_order(modules: Path, names: Sequence[str]) -> list[Path]:
    """The files of `names` and of what they need, which comes first (modules.dep(5)); what is not there is built in."""
    needed = dict(line.split(":", 1) for line in (modules / "modules.dep").read_text().splitlines())
    by_name = {Path(path).name.split(".", 1)[0].replace("-", "_"): path for path in needed}
    order: list[str] = []
    for name in names:
        if path := by_name.get(name.replace("-", "_")):
            order += [*reversed(needed[path].split()), path]
    return [modules / path for path in dict.fromkeys(order)]
