# SPDX-License-Identifier: GPL-2.0-or-later
"""Capture images in the cache, one of each kind, so that a guest's image takes a second to build and not many.

A build takes what is the same for each kernel out of an image in a folder beside its own (kdumpd.image.reuse), if no
file that went into it changed. Here the builder's own sources count too: what another builder made is no use here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .aptroot import CACHE

TOP = Path(__file__).resolve().parents[3]
_KEPT = 12


@contextlib.contextmanager
def place(output: Path) -> Iterator[Path]:
    """A folder to build in, beside the images that were built before; what is built becomes the folder `output`."""
    parent = CACHE / "images" / _key()
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
        shutil.copytree(folder, output, dirs_exist_ok=True)
        stock = json.loads((folder / "image.json").read_text())["stock_key"]
        if stock and not (parent / stock).exists():
            with contextlib.suppress(OSError):  # another process was faster
                folder.rename(parent / stock)
        kept = [path for path in parent.parent.glob("*/*") if len(path.name) == 64]
        for old in sorted(kept, key=_age)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _age(folder: Path) -> float:
    """When it came; 0 for one that another process is just removing."""
    with contextlib.suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0


def _key() -> str:
    """A sum over the sources that make images."""
    digest = hashlib.sha256()
    for path in sorted([*(TOP / "kdumpd/image").glob("*.py"), *(TOP / "initramfs").rglob("*")]):
        if path.is_file():
            digest.update(f"{path.relative_to(TOP)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
