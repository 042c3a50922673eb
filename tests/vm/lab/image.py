# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian disk images for guests, made without loop devices and kept in the cache.

The base holds everything but kdumpd; `with_package` adds the package with the image's own apt. Both are
found again by a hash over what went into them. Guests boot from overlays, so an image never changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import cpio
from .aptroot import CACHE, AptRoot, run
from .cached import made_once

SUITE = "bookworm"
INSIDE = Path(__file__).parent / "inside"
ROOT_UUID = "6b64756d-7064-4c41-8000-726f6f746673"
ROOT_LABEL = "labroot"
DISK_MIB = 3072
KEPT = 3

# What the kdumpd package depends on is part of the base, so that installing the package needs no network.
PACKAGES = (
    "systemd-sysv", "udev", "dbus", "kmod", "zstd", "initramfs-tools", "procps",
    "linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64",
    "busybox", "python3", "python3-gi", "python3-numpy", "python3-pydbus", "python3-pyelftools",
    "python3-systemd", "python3-zstandard", "squashfs-tools",
    "libxenmisc4.17",  # linked by kexec, see TOOLS
)  # fmt: skip
# Not installed, since their own services would take part: only their programs are needed.
TOOLS = ("kexec-tools", "busybox-static")
# What no test looks at, and what takes seconds of an emulated processor.
QUIET_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "modprobe@drm.service",
    "systemd-binfmt.service",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A disk and the kernels that boot it."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The raw disk: one ext4 filesystem, no partitions."""
        return self.folder / "disk.raw"

    @property
    def root(self) -> Path:
        """The same files as a folder."""
        return self.folder / "root"

    def release(self, series: str) -> str:
        """The release of the newest installed kernel of a series such as "6.1" or "6.12"."""
        names = [path.name.removeprefix("vmlinuz-") for path in (self.root / "boot").glob(f"vmlinuz-{series}.*")]
        return max(names)

    def kernel(self, series: str) -> Path:
        """The kernel to boot."""
        return self.root / "boot" / f"vmlinuz-{self.release(series)}"

    def initrd(self, series: str) -> Path:
        """Debian's own initramfs for `kernel`."""
        return self.root / "boot" / f"initrd.img-{self.release(series)}"


@functools.cache
def base(suite: str = SUITE) -> Image:
    """Debian with systemd, two kernels and all that kdumpd depends on."""
    apt = AptRoot(suite)
    recipe = [path.read_text() for path in sorted(INSIDE.iterdir())]
    recipe += [*QUIET_UNITS, *(inspect.getsource(part) for part in (_build_base, _configure, _enable, make_disk))]
    key = _key(recipe, apt.versions([*PACKAGES, *TOOLS]))
    return _cached("base", key, lambda folder: _build_base(folder, apt))


def with_package(package: Path, image: Image | None = None) -> Image:
    """`image` (or the base) after `apt-get install ./package`, run inside it."""
    image = image or base()
    key = _key([image.folder.name, hashlib.sha256(package.read_bytes()).hexdigest()], {})
    return _cached("kdumpd", key, lambda folder: _build_installed(folder, image, [package]))


def with_debian(packages: Sequence[str], image: Image | None = None) -> Image:
    """`image` (or the base) after `apt-get install` of Debian's `packages`, which fetches them outside."""
    image = image or base()
    apt = AptRoot(SUITE)
    key = _key([image.folder.name], apt.versions(packages))

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            debs = apt.download_missing(packages, image.root / "var/lib/dpkg/status", Path(scratch) / "debs")
            _build_installed(folder, image, debs)

    return _cached("debian", key, build)


def _key(texts: list[str], versions: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([texts, versions], sort_keys=True).encode()).hexdigest()[:16]


def _cached(kind: str, key: str, build: Callable[[Path], None]) -> Image:
    return Image(folder=made_once(CACHE / "vm", kind, key, build, kept=KEPT))


def _build_base(folder: Path, apt: AptRoot) -> None:
    root = folder / "root"
    run(
        [
            "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory",
            f"--include={','.join(PACKAGES)}", '--aptopt=APT::Install-Recommends "false"',
            apt.suite, str(root), *apt.sources,
        ],
        timeout=1200,
    )  # fmt: skip
    _configure(root)
    tools = folder / "tools"
    for name in TOOLS:
        run(["dpkg-deb", "-x", str(apt.download(name, folder)), str(tools)], timeout=60)
    lab = root / "opt" / "lab"
    lab.mkdir()
    for path in INSIDE.iterdir():
        shutil.copy(path, lab / path.name)
    shutil.copy(tools / "sbin" / "kexec", lab / "kexec")
    (lab / "capture.cpio").write_bytes(
        cpio.archive(
            folders=["bin", "dev", "proc"],
            files={"bin/busybox": tools / "bin" / "busybox", "init": INSIDE / "capture-init"},
        )
    )
    shutil.rmtree(tools)
    _enable(root, "runner.service", (INSIDE / "runner.service").read_text(), "multi-user.target.wants")
    make_disk(root, folder / "disk.raw")


def _configure(root: Path) -> None:
    etc = root / "etc"
    (etc / "fstab").write_text(f"UUID={ROOT_UUID} / ext4 defaults,errors=remount-ro 0 1\n")
    (etc / "hostname").write_text("guest\n")
    (etc / "hosts").write_text("127.0.0.1 localhost guest\n")
    (etc / "machine-id").write_text(hashlib.sha256(ROOT_UUID.encode()).hexdigest()[:32] + "\n")
    (root / "var/log/journal").mkdir(parents=True, exist_ok=True)
    for unit in QUIET_UNITS:
        (etc / "systemd/system" / unit).symlink_to("/dev/null")
    login = etc / "systemd/system/serial-getty@ttyS0.service.d"
    login.mkdir(parents=True)
    (login / "root.conf").write_text(
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - vt220\n"
    )


def _enable(root: Path, name: str, text: str, wants: str) -> None:
    system = root / "etc/systemd/system"
    (system / name).write_text(text)
    (system / wants).mkdir(parents=True, exist_ok=True)
    (system / wants / name).symlink_to(f"../{name}")


def _build_installed(folder: Path, image: Image, packages: Sequence[Path]) -> None:
    root = folder / "root"
    run(["cp", "-a", "--reflink=auto", str(image.root), str(root)], timeout=300)
    copies = root / "tmp" / "packages"
    copies.mkdir()
    for package in packages:
        shutil.copy(package, copies)
    names = [f"/tmp/packages/{package.name}" for package in packages]
    with _mounts(root):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *names]
        run(["chroot", str(root), *command], timeout=300, env=_CHROOT_ENV)
    shutil.rmtree(copies)
    make_disk(root, folder / "disk.raw")


def kernel_package(release: str) -> Path:
    """The .deb of the kernel `release` of the guests' suite."""
    return package_file(f"linux-image-{release}")


def package_file(name: str) -> Path:
    """The .deb of a package of the guests' suite."""
    parent = CACHE / "kernels"
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = sorted(parent.glob(f"{name}_*.deb"))
        return known[-1] if known else AptRoot(SUITE).download(name, parent)


def files_disk(files: list[Path], disk: Path) -> Path:
    """A raw ext4 disk at `disk` with copies of `files`, for what is too large to be written into a guest."""
    with tempfile.TemporaryDirectory(dir=disk.parent) as folder:
        for path in files:
            shutil.copy(path, folder)
        with disk.open("wb") as file:
            file.truncate(sum(path.stat().st_size for path in files) * 2 + (16 << 20))
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", folder, str(disk)], timeout=120)
    return disk


_CHROOT_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


@contextlib.contextmanager
def _mounts(root: Path) -> Iterator[None]:
    """/proc in the chroot, where the host allows mounting; and a policy that keeps services from starting."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def make_disk(root: Path, disk: Path) -> None:
    """A raw ext4 disk with the files of `root`; needs no loop device and no mount."""
    with disk.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-L", ROOT_LABEL, "-U", ROOT_UUID,
            "-E", "lazy_itable_init=0,nodiscard", str(disk),
        ],
        timeout=300,
    )  # fmt: skip
