# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.service`: the daemon's command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import kdumpd
from kdumpd.config.own_memory import spare_openssl
from kdumpd.errors import KdumpError
from kdumpd.service import lean
from kdumpd.service.options import Options

if TYPE_CHECKING:
    from kdumpd.host.kexec import KexecLoader
    from kdumpd.service.actions import Builder


def parse_arguments(arguments: list[str] | None = None) -> Options:
    """The options of kdumpd(8)."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        return Options()
    import argparse  # as systemd starts the daemon, it never needs it

    parser = argparse.ArgumentParser(prog="kdumpd", description="Keeps this machine ready to save a crash dump.")
    parser.add_argument("--version", action="version", version=f"kdumpd {kdumpd.__version__}")
    parser.add_argument("--root", type=Path, default=Path("/"), help="read facts below this folder")
    parser.add_argument("--state-dir", type=Path, help="folder of the images (default: /var/lib/kdumpd below the root)")
    parser.add_argument("--run-dir", type=Path, help="folder of this boot's records (default: /run/kdumpd)")
    parser.add_argument("--bus-address", help="D-Bus address (default: the system bus)")
    parser.add_argument(
        "--interval",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time between two readings of what raises no event (default: 30)",
    )
    return Options(**vars(parser.parse_args(words)))


def main(
    arguments: list[str] | None = None, *, loader: KexecLoader | None = None, builder: Builder | None = None
) -> int:
    """Runs the daemon until SIGTERM. `loader` and `builder` are others only in tests."""
    options = parse_arguments(arguments)
    lean.small_pages()
    spare_openssl()
    lean.one_arena()
    try:
        from kdumpd.service.daemon import Daemon
    except ModuleNotFoundError as missing:
        print(
            f"kdumpd: the Python module {missing.name} is not installed "
            "(apt install python3-gi python3-pydbus python3-systemd)",
            file=sys.stderr,
        )
        return 1
    try:
        return Daemon(options, loader=loader, builder=builder).run()
    except KdumpError as error:
        print(f"kdumpd: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
