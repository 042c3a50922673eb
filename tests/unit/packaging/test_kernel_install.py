# SPDX-License-Identifier: GPL-2.0-or-later
"""The distribution's own kernel-install(8), in a root of its own, with our plugin among its plugins: layout bls of the
Boot Loader Specification, no initrd of the host's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
MACHINE_ID = "0123456789abcdef0123456789abcdef"
OLD, NEW = "6.1.0-1-test", "6.12.0-1-test"
# The programs of this machine, where the root has folders for them; all else in it is the test's own.
_PROGRAMS = ("usr/bin", "usr/sbin", "usr/lib64", "usr/lib/systemd", "usr/share", "dev")
_ENTER = """
root=$1
shift
for folder in {folders}; do mount --rbind "/$folder" "$root/$folder" || exit 99; done
mount --bind {top} "$root/checkout" && mount -t proc proc "$root/proc" || exit 99
exec "$@"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine that boots with systemd-boot, and has one kernel, which kernel-install has not heard of yet."""
    root = tmp_path / "root"
    for folder in (
        *_folders(),
        "checkout",
        "usr/local/bin",
        "usr/lib/kernel/install.d",
        "etc/kernel",
        "tmp",
        "run",
        "proc",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for plugin in Path("/usr/lib/kernel/install.d").glob("*.install"):
        if plugin.name in ("50-depmod.install", "90-loaderentry.install"):
            shutil.copy(plugin, root / "usr/lib/kernel/install.d")
    shutil.copy(TOP / "packaging/kernel/install.d/60-kdumpd.install", root / "usr/lib/kernel/install.d")
    program = root / "usr/local/bin/kdumpctl"
    program.write_text(
        '#!/bin/sh\nPYTHONPATH=/checkout PYTHONDONTWRITEBYTECODE=1 exec /usr/bin/python3 -m kdumpd.cli "$@"\n'
    )
    program.chmod(0o755)
    (root / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/os-release").write_text('ID=test\nPRETTY_NAME="A test"\n')
    (root / "etc/kernel/install.conf").write_text("layout=bls\ninitrd_generator=none\n")
    (root / "etc/kernel/cmdline").write_text("root=UUID=1 ro console=ttyS0\n")
    (root / "boot/loader/entries").mkdir(parents=True)
    _kernel(root, OLD)
    return root


def _folders() -> list[str]:
    """Those that have to be there for Python and the tools."""
    found = [*_PROGRAMS, *(str(path.relative_to("/")) for path in Path("/usr/lib").glob("python3*"))]
    found += [str(path.relative_to("/")) for path in Path("/usr/lib").glob("*-linux-gnu")]
    return [folder for folder in found if Path("/", folder).is_dir()]


def _kernel(root: Path, release: str) -> None:
    modules = root / "usr/lib/modules" / release
    modules.mkdir(parents=True)
    (modules / "vmlinuz").write_text(f"kernel {release}")
    for name in ("modules.dep", "modules.order", "modules.builtin"):
        (modules / name).touch()


def inside(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of this machine where the root is complete; nobody else sees its mounts."""
    script = _ENTER.format(folders=" ".join(_folders()), top=TOP)
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", str(root), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=TOP,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(TOP)},
    )


def kernel_install(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return inside(root, "chroot", str(root), "kernel-install", *words)


def kdumpctl(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return inside(root, sys.executable, "-m", "kdumpd.cli", "--root", str(root), *words)


def notes(root: Path) -> dict[str, str]:
    folder = root / "var/lib/kdumpd/pending"
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.is_dir() else {}


def options(root: Path, release: str) -> str:
    """What the boot loader's entry of a kernel tells it."""
    entry = root / f"boot/loader/entries/{MACHINE_ID}-{release}.conf"
    (line,) = (line for line in entry.read_text().splitlines() if line.startswith("options "))
    return line.split(maxsplit=1)[1]


def test_a_kernel_that_comes_and_goes_is_noted(root: Path) -> None:
    _kernel(root, NEW)
    done = kernel_install(root, "add", NEW, f"/usr/lib/modules/{NEW}/vmlinuz")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (root / f"boot/{MACHINE_ID}/{NEW}/linux").read_text() == f"kernel {NEW}"
    added = notes(root)
    assert list(added) == [NEW]
    assert "add" in added[NEW]
    done = kernel_install(root, "remove", NEW)
    assert done.returncode == 0, done.stderr
    assert not (root / f"boot/{MACHINE_ID}/{NEW}").exists()
    removed = notes(root)
    assert list(removed) == [NEW]
    assert "remove" in removed[NEW]


def test_a_reservation_reaches_each_entry(root: Path) -> None:
    _kernel(root, NEW)
    for release in (OLD, NEW):
        assert kernel_install(root, "add", release, f"/usr/lib/modules/{release}/vmlinuz").returncode == 0
        assert "crashkernel" not in options(root, release)

    tried = kdumpctl(root, "reservation", "set", "256M", "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert "+root=UUID=1 ro console=ttyS0 crashkernel=256M" in tried.stdout
    assert "crashkernel" not in (root / "etc/kernel/cmdline").read_text() + options(root, OLD)

    done = kdumpctl(root, "reservation", "set", "256M")
    assert done.returncode == 0, done.stderr
    assert (root / "etc/kernel/cmdline").read_text() == "root=UUID=1 ro console=ttyS0 crashkernel=256M\n"
    for release in (OLD, NEW):
        assert "root=UUID=1 ro console=ttyS0 crashkernel=256M" in options(root, release)
    shown = json.loads(kdumpctl(root, "reservation", "show", "--json").stdout)
    assert (shown["boot_loader"], shown["next_boot"]) == ("kernel-install", ["256M"])

    done = kdumpctl(root, "reservation", "set", "512M,high", "128M,low")
    assert done.returncode == 0, done.stderr
    assert options(root, NEW).count("crashkernel=") == 2
    assert "crashkernel=512M,high crashkernel=128M,low" in options(root, NEW)
    again = kdumpctl(root, "reservation", "set", "512M,high", "128M,low")
    assert "has crashkernel=512M,high crashkernel=128M,low already" in again.stdout


def _fails(root: Path, script: str) -> None:
    plugin = root / "etc/kernel/install.d/95-broken.install"
    plugin.parent.mkdir()
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(0o755)


@pytest.mark.parametrize(
    "script",
    [
        "echo the disk is full >&2; exit 1",
        # The kernel before has its new entry already.
        f'[ "$2" != {NEW} ] || {{ echo the disk is full >&2; exit 1; }}',
    ],
    ids=["all", "the second"],
)
def test_a_kernel_install_that_fails_changes_nothing(script: str, root: Path) -> None:
    _kernel(root, NEW)
    for release in (OLD, NEW):
        assert kernel_install(root, "add", release, f"/usr/lib/modules/{release}/vmlinuz").returncode == 0
    _fails(root, script)
    done = kdumpctl(root, "reservation", "set", "256M")
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert (root / "etc/kernel/cmdline").read_text() == "root=UUID=1 ro console=ttyS0\n"
    for release in (OLD, NEW):
        assert "crashkernel" not in options(root, release)
    # The plugin that failed has not heard of the old value, and perhaps it wants to.
    assert "but this has to be run again once it works: kernel-install add" in done.stderr


def test_a_plugin_of_ours_that_cannot_tell_fails_no_kernel(root: Path) -> None:
    (root / "usr/local/bin/kdumpctl").write_text("#!/bin/sh\nexit 1\n")
    done = kernel_install(root, "add", OLD, f"/usr/lib/modules/{OLD}/vmlinuz")
    assert done.returncode == 0
    assert "kdumpd was not told of kernel" in done.stderr
    assert (root / f"boot/{MACHINE_ID}/{OLD}/linux").exists()
