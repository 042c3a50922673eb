# SPDX-License-Identifier: GPL-2.0-or-later
"""A second kernel: installed with apt, crashed before the reboot and after it; and removed again."""

from __future__ import annotations

import json
import time
from pathlib import Path

from lab import circle, image
from lab.qemu import Machine

QUIET = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
IMAGES = "/var/lib/kdumpd"


def _boot_files(guest: Machine) -> dict[str, str]:
    """Checksums of everything in /boot."""
    lines = guest.run(["/bin/sh", "-c", "find /boot -type f -exec sha256sum {} +"]).ok().splitlines()
    return {path: digest for digest, path in (line.split(None, 1) for line in lines)}


def _crash(guest: Machine) -> None:
    """Crashes the machine on request; it ends with the capture."""
    after = guest.console.mark()
    guest.trigger(["kdumpctl", "test", "--force"])
    circle.wait_captured(guest, after)


def test_a_second_kernel(made: image.Image, scratch: Path) -> None:
    old, new = made.release("6.1"), made.release("6.12")
    package = image.kernel_package(new)
    disk = image.files_disk([package], scratch / "packages.img")
    with circle.boot(made, scratch, disks=((disk, "raw"),), comes_back=False) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        before = _boot_files(guest)
        _without(guest, new)
        assert _boot_files(guest) == {path: digest for path, digest in before.items() if new not in path}

        guest.run(["mount", "-o", "ro", "/dev/nvme1n1", "/mnt"]).ok()
        apt = [*QUIET, "INITRD=No", "apt-get", "install", "-y", "-qq", f"/mnt/{package.name}"]
        guest.run(apt, timeout=300).ok()
        after_install = _boot_files(guest)
        built = f"test -e {IMAGES}/{new}/image.json && ! ls {IMAGES}/pending/* 2>&-"
        circle.wait_for(guest, built, "an image built ahead")
        circle.wait_journal(guest, "ahead of its first boot")
        # What dpkg's trigger asked for at the end of its run.
        circle.wait_journal(guest, "Reloaded kdumpd.service")
        assert _boot_files(guest) == after_install
        assert {path: digest for path, digest in after_install.items() if new not in path} == {
            path: digest for path, digest in before.items() if new not in path
        }

        guest.write("/etc/kdumpd/on-crash.d/note", b"#!/bin/sh\nenv | grep ^KDUMPD_ >/root/noted\n")
        guest.run(["chmod", "755", "/etc/kdumpd/on-crash.d/note"]).ok()

        # Before the reboot: what is armed is right for the running kernel.
        assert circle.status(guest)["release"] == old
        assert circle.status(guest)["state"] == "loaded"
        _nobody_is_refused(guest)
        guest.run(["/bin/sh", "-c", "journalctl --sync; sync"]).ok()
        _crash(guest)

    with circle.boot(made, scratch, series="6.12", again=True, comes_back=False) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        built = guest.run(["journalctl", "-b", "-u", "kdumpd", "-o", "cat", "--no-pager"]).ok()
        assert "Built the capture image" not in built
        assert circle.status(guest)["release"] == new
        _told_once(guest, old)
        _without_its_modules(guest, new)

        before = _boot_files(guest)
        _without(guest, old)
        circle.wait_for(guest, f"! test -e {IMAGES}/{old}", "the removal of the old kernel's image")
        assert _boot_files(guest) == {path: digest for path, digest in before.items() if old not in path}
        assert circle.status(guest)["armed"] is True
        assert len(circle.crashes(guest)) == 1
        guest.run(["sync"]).ok()
        _crash(guest)
    found = circle.manifests(scratch).values()
    assert [(manifest["result"], manifest["kernel"]) for manifest in found] == [("complete", old), ("complete", new)]


def _told_once(guest: Machine, release: str) -> None:
    """After the crash: one journal entry with its fields, and the administrator's program was called."""
    circle.wait_for(guest, "test -s /root/noted", "the program in on-crash.d")
    noted = dict(line.split("=", 1) for line in guest.run(["cat", "/root/noted"]).ok().splitlines())
    assert (noted["KDUMPD_RESULT"], noted["KDUMPD_KERNEL"]) == ("complete", release)
    guest.run(["test", "-s", noted["KDUMPD_VMCORE"]]).ok()
    words = ["journalctl", "-b", "-o", "json", "--no-pager", "MESSAGE_ID=8dd5fef6b2e54eaaa6e972647fb723b5"]
    (entry,) = guest.run(words).ok().splitlines()
    assert json.loads(entry)["KDUMPD_KERNEL"] == release
    assert guest.run(["kdumpctl", "verify"]).ok()
    assert "crash-without-dump" not in json.dumps(circle.status(guest))


def _without(guest: Machine, release: str) -> None:
    """Purges a kernel that does not run, with the metapackage that wants it."""
    query = ["/bin/sh", "-c", "dpkg-query -W -f '${Package} ${Depends}\\n' 'linux-image-*'"]
    names = [line.split()[0] for line in guest.run(query).ok().splitlines() if f"linux-image-{release}" in line]
    guest.run([*QUIET, "dpkg", "--purge", *names], timeout=300).ok()


def _without_its_modules(guest: Machine, release: str) -> None:
    """While the modules of the running kernel are away, what is loaded stays, and is not called another thing."""
    guest.run(["mv", f"/usr/lib/modules/{release}", "/root/modules"]).ok()
    try:
        time.sleep(10)
        assert guest.run(["cat", "/sys/kernel/kexec_crash_loaded"]).ok().strip() == "1"
        assert circle.status(guest)["armed"] is True
        assert guest.run(["test", "-e", f"{IMAGES}/{release}/initrd"]).rc == 0
    finally:
        guest.run(["mv", "/root/modules", f"/usr/lib/modules/{release}"]).ok()
    circle.wait_armed(guest)


def _nobody_is_refused(guest: Machine) -> None:
    """Who is not root may look, and do nothing."""
    call = ["busctl", "call", *circle.MANAGER]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for method in ("Load", "Unload", "Reload", "Rebuild", "KernelsChanged"):
        done = guest.run([*nobody, *call, method])
        assert done.rc != 0, method
        assert "needs root" in done.err, done.err
    done = guest.run([*nobody, "kdumpctl", "unload"])
    assert done.rc == 1
    assert "root" in done.err
    done = guest.run([*nobody, "kdumpctl", "status"])
    assert done.rc == 0, done.out + done.err
    assert guest.run(["cat", "/sys/kernel/kexec_crash_loaded"]).ok().strip() == "1"
