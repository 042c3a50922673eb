# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the Python that libkdumpfile belongs to: what it reads in a dump, as JSON. Arguments: DUMP PFN..."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import kdumpfile


def main() -> None:
    """Prints it."""
    dump, *pfns = sys.argv[1:]
    context = kdumpfile.Context()
    context.open(os.open(dump, os.O_RDONLY))
    context.attr["addrxlat.ostype"] = "linux"
    pages: dict[str, str | None] = {}
    for pfn in pfns:
        try:
            page = context.read(kdumpfile.MACHPHYSADDR, int(pfn) << 12, 4096)
        except kdumpfile.NoDataError:
            pages[pfn] = None
        else:
            pages[pfn] = hashlib.sha256(page).hexdigest()
    found = {
        "format": context.attr["file.format"],
        "machine": context.attr.get("arch.name"),
        "release": context.attr.get("linux.uts.release"),
        "pages": pages,
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
