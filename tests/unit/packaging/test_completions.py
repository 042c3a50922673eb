# SPDX-License-Identifier: GPL-2.0-or-later
"""Completions of bash, zsh and fish: each shell offers what the parser knows, and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import shells

from kdumpd.cli.parser import commands, make_parser

Shell = Callable[[list[str], str], list[set[str]]]
_TREE = make_parser()


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A folder with a kdumpctl that knows two crashes."""
    program = tmp_path / "kdumpctl"
    program.write_text("""#!/bin/sh\necho '[{"name": "host-1", "path": "/x"}, {"name": "host-2", "path": "/y"}]'\n""")
    program.chmod(0o755)
    return str(tmp_path)


@pytest.mark.parametrize("shell", [shells.bash, shells.zsh, shells.fish], ids=["bash", "zsh", "fish"])
def test_a_shell_offers_what_the_parser_knows(shell: Shell, path: str) -> None:
    verbs = dict(commands(_TREE))
    inner = {f"{verb} {name}": parser for verb in verbs for name, parser in commands(verbs[verb])}
    paths = {**{verb: parser for verb, parser in verbs.items() if verb != "reservation"}, **inner}
    # zsh offers the options of `set` behind `show` too: they share one description.
    paths = {words: parser for words, parser in paths.items() if words != "reservation show"}
    wanted = [options(parser) for parser in paths.values()]
    lines = [f"kdumpctl {words} --" for words in paths]
    extra = ["kdumpctl ", "kdumpctl info ", "kdumpctl reservation ", "kdumpctl kernel-hook "]
    found = shell([*lines, *extra], path)
    assert dict(zip(lines, found, strict=False)) == dict(zip(lines, wanted, strict=True))
    names, crashes, reservation, hook = found[-4:]
    assert names == set(verbs)
    assert crashes == {"last", "host-1", "host-2"}
    assert (reservation, hook) == ({"show", "set"}, {"add", "remove"})


@pytest.mark.parametrize("shell", [shells.bash, shells.fish], ids=["bash", "fish"])
def test_a_beginning_is_completed(shell: Shell, path: str) -> None:
    lines = ["kdumpctl stat", "kdumpctl --root / wa", "kdumpctl --json "]
    assert shell(lines, path) == [{"status"}, {"watch"}, {"short", "pretty", "off"}]
