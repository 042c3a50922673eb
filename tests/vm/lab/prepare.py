# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes what tests/vm shares: package, disk images, debug symbols. `/usr/bin/python3 -m lab.prepare`."""

from __future__ import annotations

import sys
from pathlib import Path

from . import chroot, circle, image, tools, vmcore, whole
from .aptroot import run

TOP = Path(__file__).resolve().parents[3]


def package() -> Path:
    """The .deb of this checkout, built anew."""
    return Path(run([str(TOP / "packaging" / "build-deb")], timeout=600).splitlines()[-1])


def main() -> None:
    """Does all of it, so that tests running side by side find it done."""
    made = image.with_package(package())
    symbols = [vmcore.debug_symbols(made.release(series)) for series in ("6.1", "6.12")]
    kernels = [whole.whole(name).image for name in ("generic", "7", "6.12-trixie")]
    newer = chroot.debian("trixie")
    for done in (made.disk, circle.armed_disk(made), *symbols, tools.program("crash")[0], *kernels, newer):
        sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    main()
