# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.service`: the daemon's command line."""

from __future__ import annotations

import os
import sys

from kdumpd.loader.call import call_loader

# All else is imported when the loader was called: until it has loaded a crash is lost.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from kdumpd.host.kexec import KexecLoader
    from kdumpd.service.actions import Builder
    from kdumpd.service.early import Early
    from kdumpd.service.options import Options
    from kdumpd.service.places import Places

_ALONE_SECONDS = 10.0


def parse_arguments(arguments: list[str] | None = None) -> Options:
    """The options of kdumpd(8)."""
    from kdumpd.service.options import Options

    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        return Options()
    import argparse  # as systemd starts the daemon, it never needs it
    from pathlib import Path

    import kdumpd

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


def _arm_early(places: Places, loader: KexecLoader) -> Early:
    """Loads what was loaded before the boot, if that is still right, while the rest of the daemon is imported."""
    from kdumpd.service.early import Early

    early = Early(places, loader)
    early.begin()
    if len(os.sched_getaffinity(0)) == 1:
        early.wait(_ALONE_SECONDS)  # the imports would take the processor from the loader
    return early


def main(
    arguments: list[str] | None = None, *, loader: KexecLoader | None = None, builder: Builder | None = None
) -> int:
    """Runs the daemon until SIGTERM. `loader` and `builder` are others only in tests."""
    waiting = call_loader() if not (sys.argv[1:] if arguments is None else arguments) else None
    options = parse_arguments(arguments)
    from kdumpd.config.own_memory import spare_openssl
    from kdumpd.errors import KdumpError
    from kdumpd.service import lean

    lean.small_pages()
    spare_openssl()
    lean.one_arena()
    from kdumpd.host.units import have_units  # what follows may import hashlib
    from kdumpd.loader.client import ProcessLoader

    os.umask(0o077)
    units = str(options.root) == "/" and have_units()
    processes = ProcessLoader(options.places.run_dir, root=options.root, units=units, waiting=waiting)
    loader = loader or processes
    early = _arm_early(options.places, loader)
    if not early.began:
        processes.let_go()
    try:
        from kdumpd.service.daemon import Daemon
    except ModuleNotFoundError as missing:
        early.wait()
        print(
            f"kdumpd: the Python module {missing.name} is not installed "
            "(apt install python3-gi python3-pydbus python3-systemd)",
            file=sys.stderr,
        )
        return 1
    try:
        return Daemon(options, loader=loader, builder=builder, early=early).run()
    except KdumpError as error:
        print(f"kdumpd: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
