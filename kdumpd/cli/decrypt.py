# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl decrypt: a crash that was encrypted, or one file of it, made readable with the private key."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from kdumpd.cli import output
from kdumpd.config.parse import read_config
from kdumpd.crashes.decrypt import Decrypted, decrypt
from kdumpd.crashes.identity import default_identity, read_identities
from kdumpd.crashes.index import find_crash
from kdumpd.crashes.place import read_all_crashes
from kdumpd.crashes.text import printable
from kdumpd.dumpfile.manifest import ENCRYPTED_SUFFIX
from kdumpd.errors import NotFoundError


def run(options: Namespace) -> int:
    """0 when everything came out whole, 1 when a file was cut or damaged. Raises KdumpError when there is nothing."""
    place = _place(options.crash, options.root)
    identities = read_identities(options.identity or [default_identity()])
    folder = options.output or Path(f"{place.name.removesuffix(ENCRYPTED_SUFFIX)}-decrypted")
    done = decrypt(place, identities, folder)
    if options.json != "off":
        output.print_json([_facts(each) for each in done], options.json)
    for each in done:
        if options.json == "off":
            print(f"{printable(str(each.path))}: {output.size(each.size_bytes)}")
    for each in done:
        if each.problem is not None:
            print(f"kdumpctl: {printable(each.problem)}", file=sys.stderr)
            if each.path.name.startswith("vmcore.incomplete"):
                print("  what came is marked as incomplete: crash --zero_excluded opens it", file=sys.stderr)
    return 1 if any(each.problem is not None for each in done) else 0


def _place(word: str, root: Path) -> Path:
    """A file or folder by its path, else a crash by its name or number. Raises NotFoundError."""
    path = Path(word)
    if "/" in word or path.is_file():
        if not path.exists():
            raise NotFoundError(f"there is no file or folder {word}")
        return path
    return find_crash(read_all_crashes(read_config(root), root), word).path


def _facts(each: Decrypted) -> dict[str, object]:
    return {
        "source": str(each.source),
        "path": str(each.path),
        "size_bytes": each.size_bytes,
        "whole": each.problem is None,
        "problem": each.problem,
    }
