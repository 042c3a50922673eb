# SPDX-License-Identifier: GPL-2.0-or-later
"""One language: what the parser knows is what the manual and the completions say, and typing errors are understood."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator

import pytest
from ctl import TOP, kdumpctl

from kdumpd.cli.parser import commands, make_parser

_TREE = make_parser()


def walk(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each path of verbs, and the long options that may follow it."""
    options = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    yield before, options
    for name, inner in commands(parser):
        yield from walk(inner, (*before, name))


def verbs() -> set[str]:
    return {" ".join(path) for path, _ in walk(_TREE)} - {"", "reservation", "kernel-hook"}


def options() -> set[str]:
    return {name for _, names in walk(_TREE) for name in names}


def test_the_manual_page_names_every_verb_and_no_other() -> None:
    text = (TOP / "man/kdumpctl.8.rst").read_text().split("\nCOMMANDS\n")[1].split("\nOPTIONS\n")[0]
    heads = re.findall(r"^\*\*.*$", text, re.M)
    named = {name for head in heads for name in re.findall(r"\*\*([a-z][a-z -]*)\*\*", head)}
    assert named == verbs()


def test_the_manual_page_names_every_option_and_no_other() -> None:
    text = (TOP / "man/kdumpctl.8.rst").read_text().split("\nOPTIONS\n")[1].split("\nEXIT STATUS\n")[0]
    named = {name for head in re.findall(r"^\*\*.*$", text, re.M) for name in re.findall(r"--[a-z-]+", head)}
    assert named == options()


def test_every_verb_leads_to_a_function() -> None:
    for path, _ in walk(_TREE):
        if len(path) == 1:
            inner = dict(commands(_TREE))[path[0]]
            module, function = inner.get_default("run").split(":")
            assert callable(getattr(importlib.import_module(f"kdumpd.cli.{module}"), function)), path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("stauts",), "there is no command 'stauts'; did you mean 'status'?"),
        (("reservation", "shwo"), "there is no command 'shwo'; did you mean 'show'?"),
        (("--jsno",), "there is no option or argument '--jsno' here; did you mean '--json'?"),
        (("xyzzy",), "there is no command 'xyzzy'"),
        (("reservation", "set"), "the following arguments are required: SIZE"),
    ],
)
def test_typing_errors_are_understood(words: tuple[str, ...], sentence: str) -> None:
    done = kdumpctl(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"kdumpctl: {sentence}\n  see: kdumpctl --help\n"


def test_help_fits_80_columns() -> None:
    for path, _ in walk(_TREE):
        text = kdumpctl(*path, "--help").stdout if len(path) < 1 else ""
        assert all(len(line) <= 80 for line in text.splitlines())
