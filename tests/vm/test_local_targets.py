# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures to disks of this machine, whatever lies between the filesystem and the disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lab import image, proof, tiny, tools, vmcore
from lab.aptroot import run


def test_ext4_by_uuid(scratch: Path) -> None:
    """With programs of the administrator's before and after, which learn what became of it."""
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    tell = 'echo "$0 $# $1 $KDUMP_STATUS $KDUMP_RESULT $KDUMP_PATH $KDUMP_TARGET.$KDUMP_REASON"'
    prepare = tiny.programs({
        "before": tell, "pre.d/first": tell, "emergency.d/never": tell,
        "post.d/last": f'{tell} >"$KDUMP_DIR/../../seen"', "after": f'{tell} >>"$KDUMP_DIR/../../seen"',
    })  # fmt: skip
    config = f"ext4 UUID={uuid}\npath /crash\nkdump_pre /etc/kdump/before\nkdump_post /etc/kdump/after\n"
    outcome = tiny.crash(config, scratch, disks=[tiny.Disk(path=disk)], prepare=prepare)
    assert "SAVED /crash/" in outcome.capture
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    said = [line for line in outcome.capture.splitlines() if line.startswith("/etc/kdump/")]
    assert said == ["/etc/kdump/before 0     .", "/etc/kdump/pre.d/first 0     ."]
    seen = run(["debugfs", "-R", "cat /seen", str(disk)], timeout=60).splitlines()
    learned = f"1 0 0 complete /crash/{folder.name} /crash on UUID={uuid} (ext4)."
    assert seen == [f"/etc/kdump/post.d/last {learned}", f"/etc/kdump/after {learned}"]
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.accepted(folder)
    proof.opens(folder, vmcore.debug_symbols(image.base().release("6.1")), outcome.marker, ("init", "kthreadd"))


def _judge(folder: Path, outcome: tiny.Outcome) -> None:
    """The crash folder is what it should be, and makedumpfile reads the dump."""
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.verified(folder)
    proof.accepted(folder)


def test_xfs_by_label(scratch: Path) -> None:
    disk = scratch / "dumps.raw"
    with disk.open("wb") as file:
        file.truncate(320 << 20)
    run(["mkfs.xfs", "-q", "-L", "dumps", str(disk)], timeout=60)
    outcome = tiny.crash("xfs LABEL=dumps\npath /a/b\n", scratch, disks=[tiny.Disk(path=disk, bus="scsi")])
    tiny.read(
        "mount -t xfs -o ro /dev/sda /mnt && cp -a /mnt/a/b/. /run/read",
        scratch,
        scratch / "crash",
        disks=[tiny.Disk(path=disk, bus="scsi")],
        modules=["crc32c_generic", "xfs"],
    )
    _judge(tiny.only_crash(scratch / "crash"), outcome)


@pytest.mark.parametrize("degraded", [False, pytest.param(True, marks=pytest.mark.matrix)])
def test_lvm_on_a_mirror(degraded: bool, scratch: Path) -> None:
    """A volume group on an md array of two disks, which the capture kernel has to put together again; with one of them
    as well, when the other has failed."""
    faults = '/sbin/mdadm /dev/md7 --fail "$(disk disk1)" --remove "$(disk disk1)"' if degraded else ""
    disks = []
    for name in ("one.raw", "two.raw"):
        with (scratch / name).open("wb") as file:
            file.truncate(192 << 20)
        disks.append(tiny.Disk(path=scratch / name))
    setup = f"""{tiny.LVM}
mdadm --create /dev/md7 --run --level=1 --raid-devices=2 --assume-clean $(disk disk0) $(disk disk1) || return 1
mkdir -p /dev/disk/by-id
ln -s ../../md7 /dev/disk/by-id/md-uuid-$(mdadm --detail --export /dev/md7 | sed -n s/^MD_UUID=//p)
lvm pvcreate -q /dev/md7 && lvm vgcreate -q lab-group /dev/md7 || return 1
lvm lvcreate -q -Wn -L 150m -n dumps lab-group || return 1
/sbin/mke2fs -q -t ext4 /dev/mapper/lab--group-dumps || return 1
mkdir -p /var/crash /etc && : >/etc/mtab
mount -t ext4 /dev/mapper/lab--group-dumps /var/crash || return 1
"""
    modules = ["raid1", "dm_mod", "crc32c_generic", "ext4"]
    tools = ["/usr/sbin/lvm", "/usr/sbin/mdadm", "/usr/sbin/mke2fs"]
    outcome = tiny.crash(
        "path /var/crash\n", scratch, disks=disks, setup=setup, modules=modules, tools=tools, faults=faults
    )
    tiny.read(
        f"""{tiny.LVM}
mdadm --assemble --run /dev/md7 $(disk disk0) $(disk disk1) && lvm vgchange -q -ay lab-group || return 1
mount -t ext4 -o ro /dev/mapper/lab--group-dumps /mnt && cp -a /mnt/. /run/read
rmdir /run/read/lost+found
""",
        scratch,
        scratch / "crash",
        disks=disks,
        modules=modules,
        tools=tools,
    )
    _judge(tiny.only_crash(scratch / "crash"), outcome)


def test_usb_stick_by_label(scratch: Path) -> None:
    disk = scratch / "stick.raw"
    tiny.ext4(disk, label="STICK")
    outcome = tiny.crash(
        "ext4 LABEL=STICK\npath /\n", scratch, kernel="generic", disks=[tiny.Disk(path=disk, bus="usb")],
        setup="await /dev/sda",
    )  # fmt: skip
    assert "LABEL=STICK" in outcome.capture
    folder = scratch / "crash"
    folder.mkdir()
    run(["debugfs", "-R", f'rdump "/" "{folder}"', str(disk)], timeout=120)
    (folder / "lost+found").rmdir()
    _judge(tiny.only_crash(folder), outcome)


def test_raw_device(scratch: Path) -> None:
    """Captured to an NVMe disk without a filesystem, and copied out of it as the service does."""
    disk = scratch / "raw.raw"
    with disk.open("wb") as file:
        file.truncate(192 << 20)
    outcome = tiny.crash("raw /dev/nvme0n1\npath /crash\n", scratch, disks=[tiny.Disk(path=disk, bus="nvme")])
    assert "SAVED /dev/nvme0n1 (raw)" in outcome.capture
    words = ["/usr/bin/python3", "-m", "kdumpd.crashes.recover", "--device", str(disk), "--root", str(scratch)]
    run([*words, "--path", "/crash"], timeout=120, cwd=tiny.TOP)
    _judge(tiny.only_crash(scratch / "crash"), outcome)


def test_a_raw_device_that_somebody_made_a_filesystem_on(scratch: Path) -> None:
    """After the image was built: the filesystem stays, the machine comes back, nothing claims success."""
    disk = scratch / "raw.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    outcome = tiny.crash(
        "raw /dev/vdb\n",
        scratch,
        disks=[tiny.Disk(path=disk)],
        tools=["/usr/sbin/mke2fs"],
        faults='/sbin/mke2fs -q -F -t ext4 -L precious "$(disk disk0)"',
    )
    assert "holds an ext2, ext3 or ext4 filesystem, which a raw dump would destroy" in outcome.capture
    assert "SAVED" not in outcome.capture
    assert "failure action: reboot" in outcome.capture
    run(["e2fsck", "-fn", str(disk)], timeout=60)


@pytest.mark.matrix
def test_a_virtiofs_share(scratch: Path) -> None:
    """A folder of this host, shared by virtiofsd of a newer Debian. What the crashed kernel had open there is not known
    to anybody any more; it is mounted anew."""
    share, socket = scratch / "share", scratch / "fs"
    share.mkdir()
    words = ["--socket-path", str(socket), "--shared-dir", str(share), "--sandbox", "none", "--seccomp", "none"]
    with (
        (scratch / "virtiofsd.log").open("wb") as log,
        subprocess.Popen([*tools.program("virtiofsd"), *words], stdout=log, stderr=log) as server,
    ):
        try:
            outcome = tiny.crash(
                "virtiofs dumps\npath /crash\n",
                scratch,
                setup="mount -t virtiofs dumps /mnt && echo before >/mnt/before || return 1\nexec 7>/mnt/open",
                modules=["virtio_pci", "virtiofs"],
                words=[
                    *("-object", f"memory-backend-memfd,id=ram,size={tiny.MEMORY_MIB}M,share=on"),
                    *("-machine", "memory-backend=ram", "-chardev", f"socket,id=fs,path={socket}"),
                    *("-device", "vhost-user-fs-pci,chardev=fs,tag=dumps"),
                ],
            )
        finally:
            server.kill()
    assert "SAVED" in outcome.capture, outcome.capture[-3000:]
    _judge(tiny.only_crash(share / "crash"), outcome)


@pytest.mark.parametrize("kernel", [pytest.param("6.12", marks=pytest.mark.matrix), "7"])
def test_kernels_capture(kernel: str, scratch: Path) -> None:
    """Newer kernels than 6.1 capture themselves; 6.12 does so in test_capture.py, too."""
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    outcome = tiny.crash(f"ext4 UUID={uuid}\npath /crash\n", scratch, kernel=kernel, disks=[tiny.Disk(path=disk)])
    _judge(tiny.take_ext4(disk, "/crash", scratch / "crash"), outcome)
