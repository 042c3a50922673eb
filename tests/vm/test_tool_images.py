# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures by the images that the distribution's own tools make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import circle, cpio, image, proof, tiny


def _captured(scratch: Path, builder: str, name: str, **guest: str) -> None:
    """A tiny guest crashes with the image of that builder, in the 192 MiB that such images need; its dump is whole."""
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    outcome = tiny.crash(
        f"ext4 UUID={uuid}\npath /crash\nbuilder {builder}\n",
        scratch,
        disks=[tiny.Disk(path=disk)],
        crashkernel="192M",
        name=name,
        **guest,
    )
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    proof.complete(folder)
    proof.marker(folder, outcome.marker)
    proof.accepted(folder)


@pytest.mark.parametrize("builder", ["dracut", "initramfs-tools"])
def test_this_debian_s_tools(builder: str, scratch: Path) -> None:
    """On Debian 12 dracut 059 and initramfs-tools 0.142."""
    _captured(scratch, builder, name=builder)


def test_dracut_ng_of_debian_13(scratch: Path) -> None:
    """Built with trixie's dracut 106, Python 3.13 and udev for its kernel 6.12."""
    _captured(scratch, "dracut", name="dracut-ng", suite="trixie", kernel="6.12-trixie")


@pytest.mark.matrix
def test_dracut_gives_up(scratch: Path) -> None:
    """Another module's hook ends dracut before there are devices: the crash is captured all the same."""
    disk = scratch / "dumps.raw"
    uuid = tiny.ext4(disk)
    hook = scratch / "hook"
    hook.write_text('die "a hook failed"\n')

    def spoil(initrd: Path) -> None:
        at = "usr/lib/dracut/hooks/pre-udev"
        folders = [at.rsplit("/", depth)[0] for depth in (4, 3, 2, 1, 0)]
        with initrd.open("ab") as file:
            file.write(bytes(-file.tell() % 4))  # where an archive may begin
            file.write(cpio.archive(folders=folders, files={f"{at}/50-fails.sh": hook}))

    config = f"ext4 UUID={uuid}\npath /crash\nbuilder dracut\n"
    outcome = tiny.crash(config, scratch, disks=[tiny.Disk(path=disk)], crashkernel="192M", edit=spoil)
    assert "a hook failed" in outcome.capture
    folder = tiny.take_ext4(disk, "/crash", scratch / "crash")
    proof.complete(folder)
    proof.marker(folder, outcome.marker)


@pytest.mark.matrix
@pytest.mark.parametrize("builder", ["dracut", "initramfs-tools"])
def test_built_by_the_service(made: image.Image, builder: str, scratch: Path) -> None:
    """By the tool of a whole Debian, in the sandbox of kdumpd-build@.service, and captured with what came of it."""
    with_tool = image.with_debian(["dracut-core"], made) if builder == "dracut" else made
    with circle.boot(with_tool, scratch, fresh=True) as guest:
        guest.wait_ready()
        guest.run(["/bin/sh", "-c", f"echo 'builder {builder}' >>/etc/kdump.conf"]).ok()
        # The build that has begun is not waited for.
        guest.run(["systemctl", "stop", "kdumpd.service", "kdumpd-build@*.service"], timeout=120).ok()
        guest.run(["systemctl", "start", "kdumpd.service"], timeout=120).ok()
        circle.wait_armed(guest, 600)
        record = json.loads(guest.run(["cat", f"/var/lib/kdumpd/{made.release('6.1')}/image.json"]).ok())
        assert record["builder"] == builder
        after = guest.console.mark()
        marker = circle.mark_log(guest)
        guest.crash()
        circle.wait_back(guest, after)
        (name,) = circle.crashes(guest)
        guest.power_off()
    circle.copy_out(scratch / "disk.qcow2", f"{circle.CRASH_DIR}/{name}", scratch / "crash")
    proof.complete(scratch / "crash" / name)
    proof.marker(scratch / "crash" / name, marker)
