# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds the package to docs/ARCHITECTURE.md: which room imports which, and what nobody does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "kdumpd"


def _rooms() -> list[str]:
    """The rooms in the order of the table in docs/ARCHITECTURE.md."""
    text = (TOP / "docs" / "ARCHITECTURE.md").read_text()
    table = text.split("## Rooms, from the ground up")[1].split("\n## ")[0]
    return [name.removesuffix(".py").rstrip("/") for name in re.findall(r"^\| `([a-z_]+(?:/|\.py))` \|", table, re.M)]


ROOMS = _rooms()
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name == "errors.py")


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """The absolute names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.module
            if node.module == "kdumpd":
                yield from (f"kdumpd.{alias.name}" for alias in node.names)


def _identify(path: Path) -> str:
    return str(path.relative_to(TOP))


def test_the_table_names_every_room() -> None:
    found = {_room(path) for path in FILES}
    assert found == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=_identify)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = _room(path)
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    if room == "collector":
        # It travels in the capture image: what it imports costs memory there.
        allowed = {"errors", "config", "vmcore", "dumpfile", "targets", "collector"}
    else:
        allowed.discard("collector")
    for name in _imports(path):
        if name.startswith("kdumpd."):
            other = name.split(".")[1]
            # What is left are names of kdumpd/__init__.py.
            assert other in allowed or other not in ROOMS, f"{_identify(path)}: {room}/ must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=_identify)
def test_foreign_packages_stay_where_they_belong(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    homes = {
        "pydbus": ("service/dbus/", "cli/"),
        "gi": ("service/", "cli/"),
        "systemd": ("service/", "cli/"),
        "elftools": ("image/",),
        "numpy": ("vmcore/", "dumpfile/", "collector/"),
        "zstandard": ("dumpfile/", "image/", "host/kernel_image"),
        "paramiko": ("targets/ssh",),
        "cryptography": ("dumpfile/age", "dumpfile/sealed"),
    }
    for name in _imports(path):
        home = homes.get(name.split(".")[0])
        if home is not None:
            assert str(relative).startswith(home), f"{_identify(path)}: {name} belongs to {' '.join(home)}"


@pytest.mark.parametrize("path", FILES, ids=_identify)
def test_nothing_is_evaluated(path: Path) -> None:
    """No shell=True, os.system, os.popen, eval or exec: names and paths come from outside."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput"), (
            f"{_identify(path)}:{node.lineno}: {called}"
        )
        for keyword in node.keywords:
            evaluated = keyword.arg == "shell" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            )
            assert not evaluated, f"{_identify(path)}:{node.lineno}: shell="
