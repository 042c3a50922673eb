# SPDX-License-Identifier: GPL-2.0-or-later
"""No import that a source has anywhere is overlooked: the capture kernel could not make up for it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kdumpd.image import pyclosure

_ODD = '''"""
from here on it is prose, import or not
"""
import a, b.c as d
from e.f import (
    g,  # with a word (or two)
    h as i,
)
if True: import j
def k():
    if k: from l import m; import n
    import o ; import p
    from q \\
        import r
    try:
        import s
    except ImportError: from t import u
    from . import near
    from v import \\
        w, x
'''


def _all(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return found


def test_all_imports_of_the_collector_are_found() -> None:
    files = [path for path in pyclosure.own_files() if path.suffix == ".py"]
    assert len(files) > 60
    for path in files:
        assert {name: set(names) for name, names in pyclosure.imports_in([path]).items()} == _all(path), path


@pytest.mark.parametrize("lines", [slice(None), slice(0, 8), slice(8, 9), slice(9, 11), slice(9, 12), slice(12, 14)])
def test_imports_are_found_however_they_are_written(lines: slice, tmp_path: Path) -> None:
    source = tmp_path / "odd.py"
    chosen = _ODD.splitlines()[lines]
    if lines.start == 12:
        chosen = [line.removeprefix("    ") for line in chosen]
    source.write_text("\n".join(chosen) + "\n")
    wanted = _all(source)
    assert wanted
    assert {name: set(names) for name, names in pyclosure.imports_in([source]).items()} == wanted
