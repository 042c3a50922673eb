# SPDX-License-Identifier: GPL-2.0-or-later
"""The package as a Debian package: lintian finds no error, and it goes in and out without leaving a trace."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import circle, image, prepare


def test_lintian_finds_no_error(made: image.Image) -> None:
    (package,) = (prepare.TOP / "build" / "deb").glob("kdumpd_*_all.deb")
    argv = ["lintian", "--allow-root", "--fail-on", "error", str(package)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_purge_leaves_nothing_behind(made: image.Image, scratch: Path) -> None:
    with circle.boot(made, scratch) as guest:
        guest.wait_ready()
        circle.wait_armed(guest)
        guest.run(["dpkg", "--purge", "kdumpd"], timeout=180).ok()
        assert guest.run(["systemctl", "is-active", "kdumpd"]).rc != 0
        for path in ("/etc/kdump.conf", "/var/lib/kdumpd", "/usr/share/kdumpd", "/usr/bin/kdumpctl"):
            assert guest.run(["test", "-e", path]).rc != 0, f"{path} is still there"
        assert guest.run(["test", "-d", circle.CRASH_DIR]).rc == 0, "the dumps went with the package"
