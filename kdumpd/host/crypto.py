# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel modules a cipher is made of, as the running kernel shows it in /proc/crypto (crypto/proc.c)."""

from __future__ import annotations

import re
from pathlib import Path

from kdumpd.host.files import read_text

_WORD = re.compile(r"[a-z0-9]+")
# What modes are put together with where there is no driver for the whole of them.
_PARTS = frozenset({"ecb", "ctr", "simd", "cryptd"})
_BUILT_IN = "kernel"


def modules_of(cipher: str, root: Path = Path("/")) -> tuple[str, ...]:
    """The loadable modules at work for `cipher`, as dm-crypt spells it ("aes-xts-plain64"), in the order of names.

    A mapping with that cipher has to be open: only what is in use is shown.
    """
    wanted = {*_WORD.findall(cipher.lower()), *_PARTS}
    found: set[str] = set()
    for block in (read_text(root, "/proc/crypto") or "").split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        module = fields.get("module", _BUILT_IN)
        words = set(_WORD.findall(fields.get("name", "")))
        if module != _BUILT_IN and words and words <= wanted:
            found.add(module.replace("-", "_"))
    return tuple(sorted(found))
