# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels of any age and architecture, unpacked aside: the image to boot and the few modules a guest needs."""

from __future__ import annotations

import dataclasses
import functools
import json
import lzma
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from .aptroot import CACHE, AptRoot, LabError, run
from .cached import digest, made_once

# What finds the disks, reads the file system and takes memory away, in kernels that do not have it built in.
MODULES = ("crc32c_generic", "nvme", "ext4", "virtio_pci", "virtio_balloon")
_VERSIONED = re.compile(r"linux-(image|binary|modules)-\d")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Where a kernel comes from: a Debian suite and a package there, or the one that depends on the newest; and
    how much memory a small guest needs with it."""

    suite: str
    package: str
    architecture: str = "amd64"
    memory_mib: int = 512


KERNELS = {
    # The newest one whose debug symbols are still to be had.
    "5.10": Kernel(suite="bullseye", package="linux-image-5.10.0-32-cloud-amd64"),
    "7": Kernel(suite="forky", package="linux-image-cloud-amd64"),
    "6.12-trixie": Kernel(suite="trixie", package="linux-image-cloud-amd64"),
    "6.12-rt": Kernel(suite="trixie", package="linux-image-rt-amd64"),
    "6.12-arm64": Kernel(suite="trixie", package="linux-image-cloud-arm64", architecture="arm64"),
    # Pages of 16 KiB.
    "6.12-arm64-16k": Kernel(suite="trixie", package="linux-image-arm64-16k", architecture="arm64", memory_mib=768),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A kernel on disk; `modules` in the order in which they load, not compressed."""

    release: str
    image: Path
    modules: tuple[Path, ...]


@functools.cache
def unpacked(kernel: Kernel) -> Unpacked:
    """The newest kernel of that package, from the cache or fresh."""
    apt = AptRoot(kernel.suite, kernel.architecture)
    # Packages with a version in the name; what is above them only names the newest one.
    packages = [name for name in apt.needs(kernel.package, "linux-") if _VERSIONED.match(name)]
    if not packages:
        raise LabError(f"{kernel.suite}: {kernel.package} depends on no kernel")
    release = packages[0].split("-", 2)[2]
    folder = made_once(
        CACHE / "kernels", release, digest(Path(__file__).read_text()),
        lambda scratch: _unpack(apt, packages, release, scratch), part="wanted", kept=2,
    )  # fmt: skip
    order = json.loads((folder / "order.json").read_text())
    return Unpacked(release=release, image=folder / "vmlinuz", modules=tuple(folder / name for name in order))


def _unpack(apt: AptRoot, packages: list[str], release: str, scratch: Path) -> None:
    root, wanted = scratch / "root", scratch / "wanted"
    wanted.mkdir()
    for package in packages:
        run(["dpkg-deb", "-x", str(apt.download(package, scratch)), str(root)], timeout=120)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    # Debian's newest kernels lie beside their modules, the older ones in /boot.
    places = [root / f"boot/vmlinuz-{release}", root / f"usr/lib/modules/{release}/vmlinuz"]
    image = next((path for path in places if path.exists()), None)
    if image is None:
        raise LabError(f"{', '.join(packages)}: no kernel image inside")
    shutil.copy(image, wanted / "vmlinuz")
    run(["depmod", "-b", str(root), release], timeout=120)
    order: list[str] = []
    modules = root / "lib/modules" / release
    for path in load_order((modules / "modules.dep").read_text(), MODULES):
        data = (modules / path).read_bytes()
        name = Path(path).name.removesuffix(".xz")
        (wanted / name).write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
        order.append(name)
    (wanted / "order.json").write_text(json.dumps(order))


def load_order(dependencies: str, modules: Sequence[str]) -> list[str]:
    """Paths of `modules` and of what they need, which comes first (modules.dep(5)). What is not there is built in."""
    needed = dict(line.split(":", 1) for line in dependencies.splitlines())
    names = {Path(path).name.split(".", 1)[0].replace("-", "_"): path for path in needed}
    order: list[str] = []
    for module in modules:
        if path := names.get(module):
            order += [*reversed(needed[path].split()), path]
    return list(dict.fromkeys(order))
