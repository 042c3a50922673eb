# SPDX-License-Identifier: GPL-2.0-or-later
"""When something is wrong: a clear sentence where people look, a reboot in every case, no false success."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lab import circle, image, nfsd
from lab.aptroot import run
from lab.qemu import Machine
from lab.sshd import CARD, HOST, Sshd, public, running

KEXEC = "/opt/lab/kexec"
LOADED = "/sys/kernel/kexec_crash_loaded"
# What the image of the guests lacks: update-grub, and what SSH takes in the service's own tongue.
GRUB = ("grub-common", "grub2-common")
SSH = ("python3-paramiko", "python3-cryptography", "python3-bcrypt", "python3-nacl", "python3-cffi-backend",
       "python3-six", "libsodium23")  # fmt: skip
# The cards by their hardware addresses, whatever udevd calls them: QEMU's own network, and the cable to the NFS server.
NETWORK = """
modprobe virtio_net
for card in /sys/class/net/*; do
    case $(cat "$card/address") in
    *:10) address=10.0.2.15/24 ;;
    *:02) address=10.0.3.2/24 ;;
    *) continue ;;
    esac
    busybox ip address add "$address" dev "${card##*/}"
    busybox ip link set "${card##*/}" up
done
"""


def _said(guest: Machine, state: str, *words: str) -> None:
    """`kdumpctl status` and the journal say the same words, and the state is on the right rung."""
    for text in words:
        circle.wait_said(guest, text)
        circle.wait_journal(guest, text)
    assert circle.status(guest)["state"] == state


def _loaded(guest: Machine) -> bool:
    return guest.run(["cat", LOADED]).ok().strip() == "1"


def _second_disk(scratch: Path, size_mib: int, label: str) -> Path:
    disk = scratch / "second.raw"
    with disk.open("wb") as file:
        file.truncate(size_mib << 20)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", label, str(disk)], timeout=60)
    return disk


def _configure(guest: Machine, text: str) -> None:
    guest.write("/etc/kdump.conf", text.encode())
    guest.run(["systemctl", "restart", "kdumpd"]).ok()


def _crash_and_return(guest: Machine) -> str:
    """Crashes the machine and waits until it is back; what the capture kernel said."""
    guest.run(["sync"]).ok()
    after = guest.console.mark()
    guest.crash()
    guest.console.wait_for(r"Kernel panic", 60, after=after)
    first = guest.console.wait_for(r"Linux version", 120, after=after)
    second = guest.console.wait_for(r"Linux version", circle.CAPTURE_TIMEOUT_S, after=first.end())
    guest.wait_ready(circle.BACK_TIMEOUT_S, after=second.end())
    return circle.flat(guest.console.text[first.start() : second.start()])


def test_no_crashkernel(made: image.Image, scratch: Path) -> None:
    """Said; and with the real update-grub the next boot gets it, which is said as well. Meanwhile the targets on the
    network are tried by their unit, since a machine that builds and loads nothing has the time."""
    packages = image.files_disk([image.package_file(name) for name in (*GRUB, *SSH)], scratch / "packages.raw")
    with (
        nfsd.running(scratch, {"dumps": 16}) as server,
        running(scratch / "sshd") as sshd,
        circle.boot(made, scratch, words="", disks=((packages, "raw"),), cards=(*server.words, *CARD)) as guest,
    ):
        guest.wait_ready()
        _said(guest, "not-reserved", "the kernel was booted without crashkernel=")
        assert not _loaded(guest)
        circle.wait_small(guest, 30 * 1024)
        # Beside what they depend on, which the guest has: libraries. No boot loader is written to a disk.
        unpack = "mount -o ro /dev/nvme1n1 /mnt; for f in /mnt/*.deb; do dpkg-deb -x $f /; done; mkdir -p /boot/grub"
        guest.run(["/bin/sh", "-ec", unpack], timeout=120).ok()
        _name_servers(guest, sshd, scratch / "out")
        _reserve_with_grub(guest, made)
        _servers_were_tried(guest, sshd, scratch / "out")


def _name_servers(guest: Machine, sshd: Sshd, out: Path) -> None:
    """Two that work and one without an export, in kdump.conf, which the service sees by itself."""
    guest.run(["/bin/sh", "-ec", NETWORK]).ok()
    out.mkdir()
    guest.run(["mkdir", "-p", "-m", "700", "/etc/kdumpd/ssh"]).ok()
    guest.write("/etc/kdumpd/ssh/id_ed25519", sshd.key.read_bytes())
    guest.run(["chmod", "600", "/etc/kdumpd/ssh/id_ed25519"]).ok()
    guest.write("/etc/kdumpd/ssh/known_hosts", f"[{HOST}]:{sshd.port} {public(sshd.host_key)}\n".encode())
    targets = f"ssh root@{HOST}:{sshd.port}\nnfs {nfsd.ADDRESS}:/srv/dumps\nnfs {nfsd.ADDRESS}:/srv/nowhere\n"
    guest.write("/etc/kdump.conf", f"{targets}path {out}\n".encode())


def _servers_were_tried(guest: Machine, sshd: Sshd, out: Path) -> None:
    """By kdumpd-test-target.service, which the service started; what it found is shown, and nothing is left behind."""
    tried = _trial(guest)
    assert [(one["target"], one["result"]) for one in tried] == [
        (f"ssh root@{HOST}:{sshd.port}", "works"),
        (f"nfs {nfsd.ADDRESS}:/srv/dumps", "works"),
        (f"nfs {nfsd.ADDRESS}:/srv/nowhere", "failed"),
    ], tried
    assert all(one["free_bytes"] > 1 << 20 for one in tried[:2])
    assert guest.run(["stat", "-c", "%a", "/run/kdumpd/targets.json"]).ok().strip() == "600"
    assert "kdumpd-test-target" in guest.run(["journalctl", "-b", "-o", "short", "--no-pager"]).ok()
    circle.wait_said(guest, f"{nfsd.ADDRESS}:/srv/nowhere cannot be mounted")
    assert list(out.iterdir()) == [], "the trial left something"
    assert "/srv/dumps" not in guest.run(["cat", "/proc/self/mountinfo"]).ok()


def _trial(guest: Machine) -> list[dict[str, Any]]:
    """The report, once there is one: a tick of the service begins the trial, which comes each half minute."""
    report = "/run/kdumpd/targets.json"
    circle.wait_for(guest, f"test -e {report}", "a report on the targets")
    found: list[dict[str, Any]] = json.loads(guest.run(["cat", report]).ok())["targets"]
    return found


def _reserve_with_grub(guest: Machine, made: image.Image) -> None:
    """The entries of every kernel have it once; a person's own value stays where he wrote it."""
    guest.write("/etc/default/grub", b'GRUB_CMDLINE_LINUX="quiet crashkernel=64M"\n')
    dry = guest.run(["kdumpctl", "reservation", "set", "256M", "--dry-run"]).ok()
    assert "would run: update-grub" in dry
    assert guest.run(["test", "-e", "/boot/grub/grub.cfg"]).rc != 0
    said = circle.flat(guest.run(["kdumpctl", "reservation", "set", "256M"], timeout=180).ok())
    assert "/etc/default/grub:1: crashkernel=64M stays there; the kernel takes the last one, which is ours." in said
    assert "From the next boot on: crashkernel=256M" in said
    entries = guest.run(["grep", "-E", r"^\s+linux\s", "/boot/grub/grub.cfg"]).ok().splitlines()
    for series in ("6.1", "6.12"):
        assert any(f"/boot/vmlinuz-{made.release(series)} " in line for line in entries)
    # The entries for a rescue leave GRUB_CMDLINE_LINUX_DEFAULT out.
    usual = [line for line in entries if " single" not in line]
    assert all(line.split().count("crashkernel=256M") == 1 for line in usual), entries
    shown = json.loads(guest.run(["kdumpctl", "reservation", "show", "--json"]).ok())
    assert (shown["boot_loader"], shown["next_boot_files"]) == ("grub", ["/boot/grub/grub.cfg"])
    assert "256M" in shown["next_boot"]
    again = guest.run(["kdumpctl", "reservation", "set", "256M"], timeout=180).ok()
    assert "The next boot has crashkernel=256M already." in circle.flat(again)


@pytest.mark.parametrize("size_mib", [64, 96])
def test_reservation_too_small(made: image.Image, scratch: Path, size_mib: int) -> None:
    """The sentence is there; what fits is loaded all the same, and the machine reboots, captured or not."""
    with circle.boot(made, scratch, words=f"crashkernel={size_mib}M") as guest:
        guest.wait_ready()
        _said(guest, "reserved-too-small", f"{size_mib} MiB are reserved for the capture kernel, a capture needs about")
        # It may have just enough memory to read its own pages again and again: nobody needs to wait long for that here.
        _configure(guest, "path /var/crash\ndeadline_total 200\ndeadline_stall 30\n")
        asked = guest.run(["kdumpctl", "load"], timeout=180)
        # Success and the kernel's word have to agree: never a false "loaded".
        assert _loaded(guest) == (asked.rc == 0), f"kdumpctl load: exit {asked.rc}\n{asked.out}{asked.err}"
        if asked.rc != 0:
            assert asked.err.strip(), "refused without a sentence"
            return
        _crash_and_return(guest)
        _no_false_success(guest)


def _no_false_success(guest: Machine) -> None:
    """No dump under its final name without a manifest that vouches for it."""
    script = 'for f in "$1"/*/vmcore; do [ -e "$f" ] && echo "$f"; done; true'
    for path in guest.run(["/bin/sh", "-c", script, "sh", circle.CRASH_DIR]).ok().split():
        manifest = json.loads(guest.run(["cat", f"{Path(path).parent}/manifest.json"]).ok())
        assert manifest["result"] == "complete"


def test_a_bad_line_in_kdump_conf(made: image.Image, scratch: Path) -> None:
    """The line is named, no new image is built with it; mended, the machine is armed."""
    with circle.boot(made, scratch) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        guest.run(["kdumpctl", "unload"]).ok()
        _configure(guest, "# a comment\npath var/crash\n")
        circle.wait_said(guest, "/etc/kdump.conf:2:")
        circle.wait_journal(guest, "/etc/kdump.conf:2:")
        assert "path must begin with a slash" in circle.flat(guest.run(["kdumpctl", "status"]).out)
        _configure(guest, "path /var/crash\n")
        guest.run(["kdumpctl", "load"], timeout=180).ok()
        circle.wait_armed(guest)


def test_a_damaged_image(made: image.Image, scratch: Path) -> None:
    """Bytes flipped on the disk are noticed: what is damaged is not loaded, and the reason is told."""
    with circle.boot(made, scratch) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        guest.run(["systemctl", "stop", "kdumpd"]).ok()
        guest.run([KEXEC, "-p", "-u"]).ok()
        initrd = f"/var/lib/kdumpd/{made.release('6.1')}/initrd"
        flip = (
            "import sys; f = open(sys.argv[1], 'r+b'); f.seek(3000000); b = f.read(16); f.seek(3000000); "
            "f.write(bytes(x ^ 255 for x in b))"
        )
        guest.run(["python3", "-c", flip, initrd]).ok()
        before = guest.run(["sha256sum", initrd]).ok()
        # With a line that cannot be followed the service has no way to build a new image.
        _configure(guest, "path var/crash\n")
        circle.wait_said(guest, f"The capture image {initrd} cannot be used")
        refused = guest.run(["kdumpctl", "load"], timeout=180)
        assert refused.rc != 0, refused.out
        assert not _loaded(guest)
        # Mended, a new image takes the place of the damaged one.
        _configure(guest, "path /var/crash\n")
        circle.wait_armed(guest)
        circle.wait_journal(guest, f"The capture image {initrd} cannot be used")
        assert guest.run(["sha256sum", initrd]).ok() != before


def test_the_disk_is_full(made: image.Image, scratch: Path) -> None:
    """What fits is kept and called incomplete; the log, written first, is whole; the reason is told three times. The
    next target is a raw device, whose dump the service copies to `path` after the boot, and only then empties it."""
    second, third = _second_disk(scratch, 16, "small"), scratch / "third.raw"
    with third.open("wb") as file:
        file.truncate(256 << 20)
    with circle.boot(made, scratch, disks=((second, "raw"), (third, "raw"))) as guest:
        guest.wait_ready()
        _configure(guest, "ext4 LABEL=small\nraw /dev/nvme2n1\npath /crash\n")
        circle.wait_armed(guest)
        marker = circle.mark_log(guest)
        said = _crash_and_return(guest)
        assert "No space left on device" in said, said[-3000:]
        guest.run(["/bin/sh", "-ec", "mkdir -p /mnt/small && mount -o ro LABEL=small /mnt/small"]).ok()
        (name,) = guest.run(["ls", "/mnt/small/crash"]).ok().split()
        folder = f"/mnt/small/crash/{name}"
        names = guest.run(["ls", folder]).ok().split()
        assert "vmcore" not in names, names
        manifest = json.loads(guest.run(["cat", f"{folder}/manifest.json"]).ok())
        assert manifest["result"] in ("incomplete", "log-only")
        assert "No space left on device" in manifest["reason"]
        assert marker in guest.run(["cat", f"{folder}/vmcore-dmesg.txt"]).ok()
        _copied(guest, f"/crash/{name}", marker)


def _copied(guest: Machine, folder: str, marker: str) -> None:
    """The dump of a raw device is whole in `folder`, private, and the device is empty."""
    unit = "systemctl show --value kdumpd-recover"
    ended = f'[ "$({unit} -p Result) $({unit} -p ActiveState)" = "success inactive" ]'
    circle.wait_for(guest, f"test -e {folder}/manifest.json && {ended}", "the copy", 300)
    assert marker in guest.run(["cat", f"{folder}/vmcore-dmesg.txt"]).ok()
    guest.run(["umount", "/mnt/small"]).ok()
    (crash,) = json.loads(guest.run(["kdumpctl", "list", "--json"]).ok())
    assert (crash["name"], crash["result"]) == (Path(folder).name, "complete")
    guest.run(["kdumpctl", "verify"], timeout=120).ok()
    assert guest.run(["stat", "-c", "%a", folder, f"{folder}/vmcore"]).ok().split() == ["700", "600"]
    table = "from kdumpd.crashes.recover import waiting; from pathlib import Path; print(waiting(Path('/dev/nvme2n1')))"
    assert guest.run(["python3", "-c", table]).ok().strip() == "()"


def test_the_target_is_gone_at_the_crash(made: image.Image, scratch: Path) -> None:
    """The disk was there when the image was built, and is not when it is needed: a sentence, and the dump comes to the
    root filesystem, in Debian's layout."""
    second = _second_disk(scratch, 64, "dumps")
    with circle.boot(made, scratch, disks=((second, "raw"),)) as guest:
        guest.wait_ready()
        _configure(guest, f"ext4 LABEL=dumps\npath {circle.CRASH_DIR}\nlayout debian\nfailure_action dump_to_rootfs\n")
        circle.wait_armed(guest)
        guest.qmp("device_del", id="nvme1")
        circle.wait_for(guest, "! test -e /dev/nvme1n1", "the guest to let go of its disk")
        marker = circle.mark_log(guest)
        said = _crash_and_return(guest)
        assert "LABEL=dumps" in said or "UUID=" in said, said[-3000:]
        _as_debian_has_it(guest, marker)


def _as_debian_has_it(guest: Machine, marker: str) -> None:
    """One dump, complete, with the names and links that kdump-tools give; beside it the log, which came here while the
    first target was waited for."""
    (path,) = guest.run(["/bin/sh", "-c", f"ls {circle.CRASH_DIR}/*/dump.*"]).ok().split()
    folder, _, stamp = path.partition("/dump.")
    assert re.fullmatch("[0-9]{12}", stamp)
    assert folder in (f"{circle.CRASH_DIR}/{stamp}", f"{circle.CRASH_DIR}/{stamp}-2")
    release = guest.run(["uname", "-r"]).ok().strip()
    assert marker in guest.run(["cat", f"{folder}/dmesg.{stamp}"]).ok()
    assert guest.run(["cat", f"{folder}/kexec_cmd"]).ok().startswith(f"kexec -p -s /boot/vmlinuz-{release} ")
    for name, start in {"kernel_link": "vmlinuz", "config_link": "config", "system.map_link": "System.map"}.items():
        assert guest.run(["readlink", f"{folder}/{name}"]).ok().strip() == f"/boot/{start}-{release}"
    found = {crash["name"]: crash["result"] for crash in json.loads(guest.run(["kdumpctl", "list", "--json"]).ok())}
    assert found.pop(Path(folder).name) == "complete"
    assert set(found.values()) <= {"log-only"}
    guest.run(["kdumpctl", "verify", Path(folder).name], timeout=120).ok()


def test_a_target_that_does_not_exist(made: image.Image, scratch: Path) -> None:
    """Named in kdump.conf, but not in the machine: said at once, not at the crash."""
    with circle.boot(made, scratch) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        guest.run(["kdumpctl", "unload"]).ok()
        _configure(guest, "ext4 LABEL=nowhere\n")
        circle.wait_said(guest, "LABEL=nowhere")
        circle.wait_journal(guest, "LABEL=nowhere")
