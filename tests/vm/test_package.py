# SPDX-License-Identifier: GPL-2.0-or-later
"""The package as a Debian package: lintian finds nothing, and it is upgraded, removed and purged without a trace."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import circle, image, prepare
from lab.aptroot import run


def _package() -> Path:
    (package,) = (prepare.TOP / "build" / "deb").glob("kdumpd_*_all.deb")
    return package


def _next_version(package: Path, folder: Path) -> Path:
    """The same package with a higher version, as a later release would have."""
    tree = folder / "tree"
    run(["dpkg-deb", "-R", str(package), str(tree)], timeout=60)
    control = tree / "DEBIAN" / "control"
    text = control.read_text()
    version = next(line for line in text.splitlines() if line.startswith("Version: "))
    control.write_text(text.replace(version, version + "+next"))
    run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(folder / "next.deb")], timeout=60)
    return folder / "next.deb"


def test_lintian_finds_nothing(made: image.Image) -> None:
    argv = ["lintian", "--allow-root", "--fail-on", "error,warning", str(_package())]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_upgrade_keeps_the_machine_armed_and_a_purge_leaves_nothing(made: image.Image, scratch: Path) -> None:
    following = _next_version(_package(), scratch)
    with circle.boot(made, scratch) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        image_id = circle.status(guest)["image_id"]
        guest.run(["/bin/sh", "-c", "echo '# mine' >>/etc/kdump.conf"]).ok()
        guest.write("/root/next.deb", following.read_bytes())
        guest.run(["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-i", "/root/next.deb"], timeout=180).ok()
        # At no moment without a capture kernel, and no image was built for nothing.
        assert guest.run(["cat", "/sys/kernel/kexec_crash_loaded"]).ok().strip() == "1"
        circle.wait_armed(guest)
        assert circle.status(guest)["image_id"] == image_id
        said = guest.run(["journalctl", "-b", "-u", "kdumpd", "-o", "cat", "--no-pager"]).ok()
        assert said.count("Loaded the capture kernel") == 1, said
        assert "# mine" in guest.run(["cat", "/etc/kdump.conf"]).ok()
        manual = guest.run(["/bin/sh", "-c", "zcat /usr/share/man/man5/org.kdumpd.Kdump1.5.gz"]).ok()
        assert "KernelsChanged" in manual

        guest.run(["dpkg", "--remove", "kdumpd"], timeout=180).ok()
        assert guest.run(["systemctl", "is-active", "kdumpd"]).rc != 0
        assert "# mine" in guest.run(["cat", "/etc/kdump.conf"]).ok()
        # What a removed package leaves in /etc/kernel must not disturb an upgrade of the kernel.
        assert guest.run(["/etc/kernel/postinst.d/kdumpd", "6.1"]).ok() == ""
        guest.run(["dpkg", "--purge", "kdumpd"], timeout=180).ok()
        left = ["/etc/kdump.conf", "/etc/kdumpd", "/etc/kernel/postinst.d/kdumpd", "/etc/kernel/postrm.d/kdumpd"]
        for path in (*left, "/var/lib/kdumpd", "/usr/share/kdumpd", "/usr/bin/kdumpctl", "/usr/lib/kernel/install.d"):
            assert guest.run(["/bin/sh", "-c", f"ls -d {path}/*kdump* {path} 2>&- | grep kdump"]).rc != 0, path
        assert guest.run(["test", "-d", circle.CRASH_DIR]).rc == 0, "the dumps went with the package"
