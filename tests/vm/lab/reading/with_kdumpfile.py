# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the Python that libkdumpfile belongs to: what it reads in a dump, as JSON. Arguments: DUMP PFN...

Of each page its SHA-256, None when it was left out, or what libkdumpfile says of it when it should be there.
"""

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
    size = context.attr["arch.page_size"]
    pages: dict[str, str | None] = {}
    for pfn in pfns:
        try:
            page = context.read(kdumpfile.MACHPHYSADDR, int(pfn) * size, size)
        except kdumpfile.NoDataError:
            pages[pfn] = None
        except kdumpfile.CorruptError as error:
            pages[pfn] = str(error)
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
