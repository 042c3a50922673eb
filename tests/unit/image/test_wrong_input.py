# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong on the machine is told in one sentence that names it, and the image that is there stays as it is.

Each build is a process in a mount namespace of its own, where the real thing is done to it: a full filesystem, one that
cannot be written to, one without modes, a file that cannot be read.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kdumpd
from kdumpd.config.model import DumpSettings
from kdumpd.errors import BuildError
from kdumpd.image import build, check, parts

if TYPE_CHECKING:
    from kdumpd.image import BuildRequest, ImageRecord

Built = tuple["BuildRequest", "ImageRecord"]

_BUILD = """
import pickle, sys
from kdumpd.errors import KdumpError
from kdumpd.image import builder, squash
squash.LEVEL = 1
request, anew = pickle.load(sys.stdin.buffer)
try:
    builder.build(request, anew=anew)
except KdumpError as error:
    print(error.sentence, error.hint, sep="\\n")
    sys.exit(3)
"""


def _build(request: BuildRequest, before: str = "", *, anew: bool = False, words: tuple[str, ...] = ()) -> list[str]:
    """Builds after the commands `before` (sh), in a mount namespace of its own; sentence and cure, or nothing.

    `words` are what starts Python, setpriv(1) say.
    """
    python = [*words, sys.executable, "-c", _BUILD]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'{before}\nexec "$@"', "sh", *python],
        input=pickle.dumps((request, anew)),
        capture_output=True,
        env={"PYTHONPATH": str(Path(kdumpd.__file__).parents[1]), "PATH": os.environ["PATH"]},
        check=False,
        timeout=300,
    )
    assert done.returncode in (0, 3), done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def _changed(built: Built, folder: Path, **changes: Any) -> BuildRequest:
    """Asks for settings that the image in `folder` does not have."""
    capture = dataclasses.replace(built[0].capture, dump=DumpSettings(levels=(0,)))
    return dataclasses.replace(built[0], output=folder, capture=capture, **changes)


def _stays(folder: Path, record: ImageRecord) -> None:
    assert check(folder) == record
    assert sorted(path.name for path in folder.iterdir()) == ["image.json", "initrd"]


def test_a_full_filesystem(image: tuple[Path, ImageRecord], built: Built, tmp_path: Path) -> None:
    """A tmpfs with room for the image that is there, and not for another one beside it."""
    folder, record = image
    small = tmp_path / "small"
    small.mkdir()
    size = (record.packed_bytes >> 20) + 4
    mount = f"mount -t tmpfs -o size={size}M,mode=0700 small {small} && cp -a {folder}/. {small}"
    look = f"trap 'cp -a {small}/. {tmp_path}/after' EXIT"
    (tmp_path / "after").mkdir(mode=0o700)
    request = _changed(built, small)
    # The shell stays, to show what is left when the namespace is gone.
    done = _build(request, f'{mount}; {look}\n"$@" || exit $?\nexit 0', anew=True)
    assert done == [
        f"the capture image cannot be written to {small}: No space left on device",
        f"df -h {small}",
    ]
    _stays(tmp_path / "after", record)


def test_a_folder_that_cannot_be_written_to(image: tuple[Path, ImageRecord], built: Built) -> None:
    folder, record = image
    done = _build(_changed(built, folder), f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}")
    assert done == [
        f"the capture image cannot be written to {folder}: Read-only file system",
        f"df -h {folder}",
    ]
    _stays(folder, record)


def test_a_folder_that_cannot_be_made(built: Built, tmp_path: Path) -> None:
    request = _changed(built, tmp_path / "state/image")
    sentence, cure = _build(request, f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}")
    assert sentence == f"the folder {request.output} cannot be made: Read-only file system"
    assert cure.startswith(f"ls -ld {request.output.parent}")
    assert list(tmp_path.iterdir()) == []


def test_boot_is_only_read(image: tuple[Path, ImageRecord], built: Built) -> None:
    boot = built[0].root / "boot"
    request = _changed(built, image[0])
    assert _build(request, f"mount --bind {boot} {boot} && mount -o remount,bind,ro {boot}") == []
    assert check(image[0]).capture == request.capture


def test_a_filesystem_without_modes(built: Built, tmp_path: Path) -> None:
    """vfat, by FUSE: whatever is written there can be read by everybody, a private key too."""
    (tmp_path / "mnt").mkdir()
    disk = tmp_path / "fat.img"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.vfat", str(disk)], check=True, capture_output=True)
    request = _changed(built, tmp_path / "mnt/image")
    mount = f"fusefat -o rw+ -o umask=022 {disk} {tmp_path}/mnt >/dev/null 2>&1"
    done = _build(
        request,
        f'{mount}\n"$@" || code=$?\n'
        f"ls -AR {request.output} >{tmp_path}/listed\numount {tmp_path}/mnt\nexit ${{code-0}}",
    )
    assert done == [
        f"everybody could read the capture image in {request.output}: that filesystem keeps no modes",
        "choose a folder on another filesystem, ext4 say",
    ]
    assert (tmp_path / "listed").read_text().split() == [f"{request.output}:"]


def test_a_library_that_cannot_be_read(image: tuple[Path, ImageRecord], built: Built, tmp_path: Path) -> None:
    """The builder may read all files; the disk below may not: here it is a user who may not."""
    folder, record = image
    library = next(file.source.path for file in record.files if file.path.endswith("/libgcc_s.so.1") and file.source)
    closed = tmp_path / "closed"
    shutil.copy(library, closed)
    closed.chmod(0)
    drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--reuid=0")
    sentence, cure = _build(
        _changed(built, folder), f"mount --bind {closed} {os.path.realpath(library)}", anew=True, words=drop
    )
    assert sentence.endswith("/libgcc_s.so.1 cannot be read: Permission denied")
    assert cure == "install its package again"
    _stays(folder, record)


@pytest.mark.parametrize("module", ["numpy", "zstandard"])
@pytest.mark.parametrize("there", ["empty", "gone"])
def test_a_python_with_a_module_missing(
    image: tuple[Path, ImageRecord], built: Built, tmp_path: Path, module: str, there: str
) -> None:
    """Its folder is empty, which Python takes for a package, or what is in it does not load."""
    folder, record = image
    hidden = f"/usr/lib/python3/dist-packages/{module}"
    spoil = f"mount -t tmpfs hidden {hidden}"
    if there == "gone":
        spoil += f"; echo 'import no_such_module' >{hidden}/__init__.py"
    sentence, cure = _build(_changed(built, folder), spoil, anew=True)
    assert re.search(rf"{module}.* is (missing|empty)" if there == "empty" else "no_such_module", sentence), sentence
    assert f"python3-{module}" in cure
    _stays(folder, record)


def test_a_kernel_module_that_is_missing(image: tuple[Path, ImageRecord], built: Built) -> None:
    folder, record = image
    modules = built[0].kernel.modules
    sentence, cure = _build(_changed(built, folder), f"mount -t tmpfs hidden {modules}/kernel/fs/xfs", anew=True)
    assert f"{modules}/kernel/fs/xfs/xfs.ko" in sentence
    assert cure == "install the kernel's package again"
    _stays(folder, record)


def test_a_kernel_without_the_filesystem_of_the_target(image: tuple[Path, ImageRecord], built: Built) -> None:
    folder, record = image
    destination = dataclasses.replace(built[0].targets[0].destination, fstype="bcachefs")  # type: ignore[type-var]
    target = dataclasses.replace(built[0].targets[0], destination=destination)
    with pytest.raises(
        BuildError, match=f"the kernel in {built[0].kernel.modules} has no bcachefs filesystem"
    ) as caught:
        build(_changed(built, folder, targets=(target,)))
    assert "choose another target" in str(caught.value)
    _stays(folder, record)


def test_nothing_secret_gets_in_by_accident(built: Built, tmp_path: Path) -> None:
    """Where the machine has secrets there are canaries; the image holds none of them."""
    canary = "canary-7d1f2a9c"
    root = tmp_path / "root"
    shutil.copytree(built[0].root, root)
    for path in ("etc/shadow", "etc/gshadow", "etc/ssh/ssh_host_ed25519_key", "root/.ssh/id_ed25519", "proc/cmdline",
                 "etc/kdumpd/ssh/id_ed25519", "etc/machine-id", "etc/fstab", "root/.bash_history"):  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"quiet token={canary}\n")
    kernel = dataclasses.replace(
        built[0].kernel,
        image=root / built[0].kernel.image.relative_to(built[0].root),
        modules=root / built[0].kernel.modules.relative_to(built[0].root),
    )
    request = dataclasses.replace(built[0], root=root, kernel=kernel, output=tmp_path / "image")
    assert _build(request, anew=True, words=("env", f"KDUMPD_TOKEN={canary}")) == []
    record = check(request.output)
    for path, entry in parts.read((request.output / "initrd").read_bytes(), record.parts).items():
        assert canary.encode() not in entry.content, path
        assert not path.startswith(("etc/shadow", "etc/gshadow", "etc/ssh", "root/", "home"))
    assert stat.S_IMODE((request.output / "initrd").stat().st_mode) == 0o600
