# SPDX-License-Identifier: GPL-2.0-or-later
"""A small kernel to build images for. Python, libraries and busybox are this machine's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdumpd.config.capture import CaptureConfig, LocalDestination
from kdumpd.config.model import DEFAULT_DUMP, Action
from kdumpd.host.kernels import Kernel
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import squash
from kdumpd.image.builder import BuildRequest, build

if TYPE_CHECKING:
    from kdumpd.image import ImageRecord

RELEASE = "6.1.0-test"
CONFIG = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\nCONFIG_PROC_VMCORE=y\nCONFIG_RD_ZSTD=y\nCONFIG_RD_GZIP=y\n"
SQUASHFS = "CONFIG_BLK_DEV_LOOP=m\nCONFIG_SQUASHFS=m\nCONFIG_SQUASHFS_ZSTD=y\n"
MODULES = ("fs/xfs/xfs.ko", "lib/libcrc32c.ko", "drivers/block/loop.ko", "fs/squashfs/squashfs.ko")


def make_kernel(root: Path) -> Kernel:
    """A kernel below `root`: xfs, its helper and what mounts a squashfs are modules."""
    modules = root / "lib/modules" / RELEASE
    for name in MODULES:
        path = modules / "kernel" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x7fELF" + name.encode() + bytes(3000))
    dependencies = "".join(f"kernel/{name}:\n" for name in MODULES[1:])
    (modules / "modules.dep").write_text(f"kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\n{dependencies}")
    (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (root / "boot").mkdir()
    (root / f"boot/config-{RELEASE}").write_text(CONFIG + SQUASHFS)
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(b"kernel" * 100)
    return Kernel(release=RELEASE, image=root / f"boot/vmlinuz-{RELEASE}", modules=modules)


def make_request(root: Path, output: Path, kernel: Kernel) -> BuildRequest:
    """A build for the kernel below `root`."""
    destination = LocalDestination(device="UUID=1111-aaaa", fstype="xfs", directory="/crash")
    capture = CaptureConfig(
        hostname="db1",
        kernel=RELEASE,
        destinations=(destination,),
        dump=DEFAULT_DUMP,
        final_action=Action.REBOOT,
        failure_action=Action.POWEROFF,
    )
    return BuildRequest(
        capture=capture,
        kernel=kernel,
        targets=(ResolvedTarget(destination=destination, block=None),),
        output=output,
        root=root,
    )


@pytest.fixture(scope="session", autouse=True)
def _quick() -> None:
    """Most of a build's time is packing; how well it packs is looked at once, see test_reuse.py."""
    squash.LEVEL = 1


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageRecord]:
    """Built once: a build takes seconds."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "root").mkdir()
    kernel = make_kernel(folder / "root")
    return folder, build(make_request(folder / "root", folder / "image", kernel))


@pytest.fixture(scope="session")
def new_request(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BuildRequest]:
    """Makes a kernel, and a request to build for it, in a folder of that name."""

    def make(name: str) -> BuildRequest:
        folder = tmp_path_factory.mktemp(name)
        (folder / "root").mkdir()
        return make_request(folder / "root", folder / "image", make_kernel(folder / "root"))

    return make


@pytest.fixture
def request_for(tmp_path: Path) -> BuildRequest:
    """A request whose kernel may be changed by the test; nothing is built yet."""
    (tmp_path / "root").mkdir()
    return make_request(tmp_path / "root", tmp_path / "out/image", make_kernel(tmp_path / "root"))


@pytest.fixture
def built(_built: tuple[Path, ImageRecord]) -> tuple[BuildRequest, ImageRecord]:
    """The image that was built once, and its request; only to be looked at."""
    folder, record = _built
    modules = folder / "root/lib/modules" / RELEASE
    kernel = Kernel(release=RELEASE, image=folder / f"root/boot/vmlinuz-{RELEASE}", modules=modules)
    return make_request(folder / "root", folder / "image", kernel), record


@pytest.fixture
def image(tmp_path: Path, built: tuple[BuildRequest, ImageRecord]) -> tuple[Path, ImageRecord]:
    """A copy of the image that was built once, to be damaged."""
    request, record = built
    shutil.copytree(request.output, tmp_path / "image")
    return tmp_path / "image", record
