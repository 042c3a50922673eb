# SPDX-License-Identifier: GPL-2.0-or-later
"""An image for an SSH target captures, with nothing but what is in it, to a real server."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
from pathlib import Path

from fake_kernel import OLD, FakeKernel
from lab.sshd import running

from kdumpd.config.capture import KNOWN_HOSTS, SSH_KEY, SshDestination
from kdumpd.dumpfile.manifest import Manifest, Result
from kdumpd.dumpfile.reader import verify
from kdumpd.host.mounts import ResolvedTarget
from kdumpd.image import parts
from kdumpd.image.builder import BuildRequest, build
from kdumpd.image.record import ImageRecord


def unpack(folder: Path, record: ImageRecord, where: Path) -> None:
    """As the kernel does it."""
    where.mkdir()
    for _, entry in sorted(parts.read((folder / "initrd").read_bytes(), record.parts).items()):
        path = where / entry.path
        if stat.S_ISDIR(entry.mode):
            path.mkdir(exist_ok=True)
        elif stat.S_ISLNK(entry.mode):
            path.symlink_to(entry.content.decode())
        elif entry.is_file:
            path.write_bytes(entry.content)
            path.chmod(entry.mode & 0o777)


def test_a_capture_in_the_image(request_for: BuildRequest, tmp_path: Path) -> None:
    with running(tmp_path / "sshd") as server:
        # Its host is called by its address, as in a capture kernel, which knows no names.
        account = SshDestination(user="root", host="127.0.0.1", port=server.port, directory=f"{tmp_path}/dumps")
        for source, place in ((server.key, SSH_KEY), (server.pin(server.port, name="127.0.0.1"), KNOWN_HOSTS)):
            there = request_for.root / place.lstrip("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, there)
        request = dataclasses.replace(
            request_for,
            capture=dataclasses.replace(request_for.capture, destinations=(account,)),
            targets=(ResolvedTarget(destination=account, block=None),),
        )
        record = build(request)
        keys = [file for file in record.files if file.sha256 == _sha256(server.key)]
        assert [(file.path, stat.S_IMODE(file.mode)) for file in keys] == [(SSH_KEY.lstrip("/"), 0o600)]
        assert stat.S_IMODE((request.output / "initrd").stat().st_mode) == 0o600

        image = tmp_path / "unpacked"
        unpack(request.output, record, image)
        kernel = FakeKernel(OLD)
        kernel.memory[0x600000:0x800000] = os.urandom(0x200000)
        kernel.write(image / "proc/vmcore")
        meminfo = Path("/proc/meminfo").read_text()
        (image / "proc/meminfo").write_text(meminfo)
        (image / "proc/self").mkdir()
        (image / "proc/self/status").write_text("VmHWM:  1 kB\n")
        (image / "run/kdumpd").mkdir()
        done = subprocess.run(
            ["/usr/sbin/chroot", str(image), "/usr/bin/python3", "-I", "-m", "kdumpd.collector", "capture"],
            capture_output=True,
            text=True,
            timeout=120,
            env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin", "OPENBLAS_NUM_THREADS": "1"},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (crash,) = (tmp_path / "dumps").iterdir()
    manifest = Manifest.from_json((crash / "manifest.json").read_text(), "manifest")
    assert manifest.result is Result.COMPLETE
    verify(crash / "vmcore", sample=None)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
