# SPDX-License-Identifier: GPL-2.0-or-later
"""Manual pages: they build without a warning, and say what the program knows. kdumpctl(8) is tested with its parser."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kdumpd.config.parse import directives, parse_config

TOP = Path(__file__).resolve().parents[3]
PAGES = sorted((TOP / "man").glob("*.rst"))


def rst2man(text: str) -> str:
    done = subprocess.run(["rst2man", "--strict"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_builds_without_a_warning(page: Path) -> None:
    assert rst2man(page.read_text()).count(".SH") >= 3


def test_each_directive_is_documented_and_no_other() -> None:
    text = (TOP / "man/kdump.conf.5.rst").read_text()
    named = set(re.findall(r"\*\*([a-z_0-9]+)\*\*", text))
    assert directives() - named == set()
    heads = re.findall(r"^\*\*.*?(?=\*[A-Z]|$)", text.split("\nDIRECTIVES\n")[1].split("\nNOT YET")[0], re.M)
    assert {re.findall(r"\*\*([a-z_0-9]+)\*\*", head)[0] for head in heads} <= directives()


def test_what_counts_as_a_directive_is_what_the_parser_takes() -> None:
    for name in directives():
        messages = [problem.message for problem in parse_config([("f", f"{name} x\n")]).problems]
        assert not any("unknown directive" in message for message in messages), name


def test_each_option_of_the_service_is_documented() -> None:
    words = [sys.executable, "-m", "kdumpd.service", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=TOP).stdout
    text = (TOP / "man/kdumpd.8.rst").read_text()
    assert set(re.findall(r"--[a-z][a-z-]+", shown)) == set(re.findall(r"--[a-z][a-z-]+", text))


def test_the_page_of_the_bus_names_every_member() -> None:
    files = sorted((TOP / "units").glob("org.kdumpd.*.xml"))
    words = [str(TOP / "packaging/dbus-manual"), *map(str, files)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    page = rst2man(text)
    for file in files:
        for interface in ET.parse(file).getroot().findall("interface"):
            assert f"INTERFACE {interface.get('name')}".upper() in page.replace("\\&", "").upper()
            for member in interface:
                if member.tag in ("method", "property", "signal"):
                    assert f"**{member.get('name')}" in text, member.get("name")
