# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl propagate, test-target: makes SSH targets ready, and tries targets with the code that captures.

The key for dumps is a key of its own. It is put on the server over the user's own ssh, whose rights and questions are
his. The server's key is pinned only when a person has seen its fingerprint, or gave it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from kdumpd.cli import output
from kdumpd.config.capture import SshDestination
from kdumpd.config.model import Config
from kdumpd.config.parse import read_config
from kdumpd.config.target_lines import read_target
from kdumpd.config.targets import SshTarget, Target
from kdumpd.errors import DeniedError, KdumpError, TargetError, UnsupportedError, UsageError
from kdumpd.service import trial
from kdumpd.service.trial import try_account, try_target
from kdumpd.targets.known_hosts import HostKey, keys_of, name_of, read_keys

_WAIT_SEC = 20.0
# The public key comes on standard input: nothing of it is ever a word of a shell's.
_INSTALL = (
    'umask 077; mkdir -p "$HOME/.ssh" && { ! [ -s "$HOME/.ssh/authorized_keys" ] ||'
    ' [ -z "$(tail -c 1 "$HOME/.ssh/authorized_keys")" ] || echo; cat; } >>"$HOME/.ssh/authorized_keys"'
)


def run(options: Namespace) -> int:
    """Key, host key, public key on the server, and a round trip, for each SSH target. Raises KdumpError."""
    if os.geteuid() != 0:
        raise DeniedError("The key for dumps is root's", hint="use sudo")
    config = read_config(options.root)
    try:
        places = [read_target("ssh", options.target)] if options.target else list(config.targets)
    except ValueError as error:
        raise UsageError(str(error)) from error
    targets = [target for target in places if isinstance(target, SshTarget)]
    if not targets:
        raise UsageError("kdump.conf names no ssh target", hint="kdumpctl propagate USER@HOST")
    for target in targets:
        _propagate(trial.account(target, config, options.root), options)
    print("The capture image has to get the keys: kdumpctl rebuild")
    return 0


def test(options: Namespace) -> int:
    """Tries each target on the network; exit status 1 when one fails."""
    if os.geteuid() != 0:
        raise DeniedError("Targets are tried as root, as in a capture", hint="use sudo")
    config = read_config(options.root)
    found = [_tried(target, config, options.root) for target in config.targets]
    if options.json != "off":
        output.print_json({"targets": found}, options.json)
    else:
        for one in found:
            print(f"{one['target']}: {one['sentence']}")
            for note in one["notes"]:
                print(output.wrap(note, 2))
        if not found:
            print("kdump.conf names no target; dumps go to the filesystem that holds its path")
    return 1 if any(one["result"] == "failed" for one in found) else 0


def _tried(target: Target, config: Config, root: Path) -> dict[str, Any]:
    result, sentence = "works", "works: a file was written, read back, renamed and removed"
    notes: list[str] = []
    try:
        notes = list(try_target(target, config, root).notes)
    except UnsupportedError as error:
        result, sentence = "not-tried", error.sentence
    except KdumpError as error:
        result, sentence = "failed", str(error)
    return {"target": str(target), "result": result, "sentence": sentence, "notes": notes}


def _propagate(account: SshDestination, options: Namespace) -> None:
    from kdumpd.targets.link import RefusedError

    _make_key(Path(account.key))
    _pin(account, options)
    try:
        notes = try_account(account).notes
    except RefusedError:
        _install(account)
        notes = try_account(account).notes
    print(f"{account}: works: a file was written, read back, renamed and removed")
    for note in notes:
        print(output.wrap(note, 2))


def _make_key(path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _ssh_program("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"kdumpd@{os.uname().nodename}", "-f", str(path))
    print(f"made the key {path}")


def _pin(account: SshDestination, options: Namespace) -> None:
    """Sees to it that the key that the server shows now is the pinned one. Raises TargetError."""
    from kdumpd.targets.ssh import host_key

    shown = host_key(dataclasses.replace(account, known_hosts=""), _WAIT_SEC)
    path = Path(account.known_hosts)
    try:
        pinned = read_keys(path, account.host, account.port)
    except TargetError:
        pinned = ()
    if shown in pinned:
        return
    name = name_of(account.host, account.port)
    if options.fingerprint is not None:
        if options.fingerprint != shown.fingerprint:
            raise TargetError(
                f"{name} shows the key {shown.fingerprint}, not {options.fingerprint}",
                hint="somebody may stand in between",
            )
    elif pinned:
        raise TargetError(
            f"{name} shows another key than the one that is pinned: {shown.kind} {shown.fingerprint}",
            hint=f"if it was changed on purpose: kdumpctl propagate --fingerprint {shown.fingerprint}",
        )
    elif not options.yes and not _agreed(name, shown):
        raise TargetError(f"the key of {name} was not pinned", hint="kdumpctl propagate --fingerprint SHA256:...")
    _write_pin(path, account, shown)
    print(f"pinned the key of {name}: {shown.kind} {shown.fingerprint}")


def _agreed(name: str, key: HostKey) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"The server {name} shows this key:\n  {key.kind} {key.fingerprint}")
    print("On the server, ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub shows its own.")
    return input("Is it the server's? [y/N] ").strip().lower() in ("y", "yes")


def _write_pin(path: Path, account: SshDestination, key: HostKey) -> None:
    """The file with this server's key instead of those that it had."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = [line for line in old.splitlines(keepends=True) if not keys_of(line, account.host, account.port)]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with open(handle, "w", encoding="utf-8") as file:
        file.write("".join(kept) + key.line(account.host, account.port))
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _install(account: SshDestination) -> None:
    """Adds the public key to the account, by the user's own ssh. Raises TargetError."""
    public = Path(f"{account.key}.pub")
    if not public.exists():
        raise TargetError(f"the public key {public} is missing", hint=f"ssh-keygen -y -f {account.key} >{public}")
    print(f"putting the key on {account.user}@{account.host}, with your own ssh:", flush=True)
    _ssh_program(
        "ssh",
        *("-o", f"UserKnownHostsFile={account.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20", "-p", str(account.port)),
        *("-l", account.user, "--", account.host, _INSTALL),
        given="restrict " + public.read_text(encoding="utf-8").strip() + "\n",
    )


def _ssh_program(name: str, *words: str, given: str = "") -> None:
    program = shutil.which(name)
    if program is None:
        raise TargetError(f"{name} is not installed", hint="install openssh-client")
    done = subprocess.run([program, *words], input=given, text=True, check=False)
    if done.returncode != 0:
        raise TargetError(f"{name} failed with status {done.returncode}", hint="its own words are above")
