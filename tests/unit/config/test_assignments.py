# SPDX-License-Identifier: GPL-2.0-or-later
"""Shell assignments as data: what a shell would assign is what is read, and nothing is ever run."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.config.assignments import parse_assignments


def values(text: str) -> dict[str, str]:
    found, problems = parse_assignments("f", text)
    assert problems == ()
    return {entry.name: entry.value for entry in found}


@pytest.mark.parametrize(
    "text",
    [
        "A=plain",
        'A="two words"',
        "A='$x `y` \\z'",
        "A=a'b c'\"d e\"f",
        'A="x \\"quoted\\" \\$5 \\`z\\` \\n"',
        "A=one\\ word",
        "A=",
        'A="over\\\ntwo"',
        'A="over\ntwo lines"',
        "export A=b # comment",
        "A=x; B=y",
        "A=a#b",
        "A=$",
        'A="cost: 5$ "',
        "# A=1\n\n  A=2\r\n".replace("\r", ""),
        "A=1\nA=2",
    ],
)
def test_what_a_shell_would_assign(text: str) -> None:
    shown = subprocess.run(
        ["/bin/sh", "-c", f'{text}\nprintf \'%s|%s\' "$A" "$B"'], capture_output=True, text=True, check=True, env={}
    ).stdout
    found = values(text)
    assert f"{found.get('A', '')}|{found.get('B', '')}" == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('A="$B"', "only a shell"),
        ("A=$(reboot)", "only a shell"),
        ("A=`reboot`", "only a shell"),
        ('A="open', "never closed"),
        ("A='open", "never closed"),
        ("A=1 reboot", "'reboot' follows A="),
        ("A=1|tee", "'|' is for a shell"),
        ("if true", "not an assignment"),
        ("A =1", "not an assignment"),
    ],
)
def test_what_only_a_shell_knows_is_named_and_the_next_line_is_read(text: str, words: str) -> None:
    found, (problem, *_) = parse_assignments("f", f"\n{text}\nC=3\n")
    assert words in problem.message
    assert (problem.file, problem.line) == ("f", 2)
    assert [entry.name for entry in found] == ["C"]


def test_a_quoted_text_over_several_lines_hides_no_assignment() -> None:
    found, problems = parse_assignments("f", 'A="$X\nB=2"\nC=3\n')
    assert [entry.name for entry in found] == ["C"]
    assert [problem.line for problem in problems] == [1]


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    found, problems = parse_assignments("f", text)
    lines = text.count("\n") + 1
    assert all(1 <= entry.line <= lines for entry in (*found, *problems))


@given(st.text(alphabet="AB=\"'\\ \n#;$`x", max_size=60))
def test_dense_text_ends_and_keeps_its_lines(text: str) -> None:
    found, problems = parse_assignments("f", text)
    assert len(found) + len(problems) <= len(text)
