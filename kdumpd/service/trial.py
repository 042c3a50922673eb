# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m kdumpd.service.trial`: tries the targets on the network with the code that captures, and reports.

The service has no network and does not wait for servers: it starts this (kdumpd-test-target.service) and reads the
report, /run/kdumpd/targets.json. `kdumpctl test-target` and `propagate` call the same functions.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from kdumpd.config.capture import KNOWN_HOSTS, SSH_KEY, NfsDestination, SshDestination
from kdumpd.config.model import Config
from kdumpd.config.parse import read_config
from kdumpd.config.targets import NfsTarget, SshTarget, Target
from kdumpd.errors import KdumpError, TargetError, UnsupportedError, os_reason
from kdumpd.host.machine import now_usec
from kdumpd.host.network import look_up
from kdumpd.service.json_file import write_atomic
from kdumpd.service.tried import FAILED, REPORT_NAME, WORKS, TriedTarget
from kdumpd.targets.probe import Probed, probe_target

_ANSWER_SECONDS = 5.0  # SSH: how long a server may be silent before it is given up


def try_target(target: Target, config: Config, root: Path = Path("/")) -> Probed:
    """A round trip. Raises the error that a capture would meet; UnsupportedError for what is on no network."""
    if isinstance(target, SshTarget):
        return try_account(account(target, config, root))
    if isinstance(target, NfsTarget):
        from kdumpd.targets.nfs import NfsExport

        destination = NfsDestination(
            server=target.server, export=target.export, directory=config.path, addresses=look_up(target.server)
        )
        with tempfile.TemporaryDirectory(prefix="kdumpd-probe-") as folder:
            return probe_target(NfsExport(destination, Path(folder)), _nothing)
    raise UnsupportedError("is not tried, since it is on a disk of this machine")


def try_account(destination: SshDestination) -> Probed:
    """As try_target, for an account."""
    from kdumpd.targets.ssh import SshServer

    return probe_target(SshServer(destination, give_up_sec=_ANSWER_SECONDS), _nothing)


def account(target: SshTarget, config: Config, root: Path) -> SshDestination:
    """The account as the capture kernel will know it, with the files below `root`."""
    return SshDestination(
        user=target.user,
        host=target.host,
        port=target.port,
        directory=config.path,
        addresses=look_up(target.host),
        key=str(root / (config.sshkey or SSH_KEY).lstrip("/")),
        known_hosts=str(root / KNOWN_HOSTS.lstrip("/")),
    )


def report(config: Config, root: Path) -> tuple[TriedTarget, ...]:
    """Each target on the network, tried. A fault of ours is none of the target's, and says nothing about it."""
    found = []
    for target in config.targets:
        if not isinstance(target, NfsTarget | SshTarget):
            continue
        try:
            probed = try_target(target, config, root)
            one = TriedTarget(target=str(target), result=WORKS, free_bytes=probed.free_bytes, time_usec=now_usec())
        except KdumpError as error:
            one = TriedTarget(
                target=str(target),
                result=FAILED,
                sentence=error.sentence,
                hint=error.hint or "",
                time_usec=now_usec(),
            )
        found.append(one)
    return tuple(found)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when a report was written, be it a bad one."""
    import argparse

    parser = argparse.ArgumentParser(prog="python3 -m kdumpd.service.trial", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER", help="the machine lies below it")
    parser.add_argument("--run-dir", type=Path, metavar="FOLDER", help="where the report goes")
    options = parser.parse_args(arguments)
    folder: Path = options.run_dir or options.root / "run/kdumpd"
    try:
        config = read_config(options.root)
        if config.errors:
            raise TargetError("kdump.conf has errors: no target is tried", hint="kdumpctl check-config")
        targets = [dataclasses.asdict(one) for one in report(config, options.root)]
        write_atomic(folder / REPORT_NAME, json.dumps({"targets": targets}, indent=1) + "\n")
    except KdumpError as error:
        print(f"<3>{error.sentence}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"<3>The report on the targets cannot be written to {folder}: {os_reason(error)}", file=sys.stderr)
        return 1
    return 0


def _nothing() -> None:
    """Nobody has to hear that this is alive."""


if __name__ == "__main__":
    sys.exit(main())
