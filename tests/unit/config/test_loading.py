# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.config.loading: how the capture kernel is loaded and what it is told."""

from __future__ import annotations

import pytest

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.config.model import Config
from kdumpd.config.parse import parse_config


def _parse(text: str) -> Config:
    return parse_config([("kdump.conf", text)])


def test_all_directives() -> None:
    config = _parse(
        'kexec_syscall kexec_load\ncommandline "console=ttyS0 ro"\ncommandline_remove irqpoll  nr-cpus\n'
        'commandline_append nr_cpus=2 dyndbg="file a.c +p"\nnr_cpus 3\n'
    )
    assert config.problems == ()
    assert config.kexec_syscall is KexecSyscall.KEXEC_LOAD
    assert config.commandline == "console=ttyS0 ro"
    assert config.commandline_remove == ("irqpoll", "nr-cpus")
    assert config.commandline_append == 'nr_cpus=2 dyndbg="file a.c +p"'
    assert config.nr_cpus == 3


def test_without_them_the_service_chooses() -> None:
    config = _parse("nr_cpus auto\nkexec_syscall auto\n")
    assert config.nr_cpus is None
    assert config == Config()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kexec_syscall both", "'both' is no way to load; use one of auto, kexec_file_load, kexec_load"),
        ("commandline_append crashkernel=64M", "'crashkernel=64M' cannot be given to a capture kernel"),
        ("commandline elfcorehdr=0x1", "cannot be given"),
        ('commandline_append a="b', "double quote"),
        ("commandline_append a -- b", "'--' would end"),
        ("commandline_append caf\u00e9", "plain ASCII"),
        ("commandline " + "a" * 2000, "2000 characters"),
        ("commandline_remove nr_cpus=1", "names without values"),
        ("nr_cpus 0", "'0' is not a number of processors"),
        ("nr_cpus 99999", "not a number of processors"),
        ("nr_cpus -1", "not a number of processors"),
    ],
)
def test_nonsense_is_named_with_its_line(line: str, words: str) -> None:
    (problem,) = _parse(f"# a comment\n{line}\n").problems
    assert problem.fatal
    assert str(problem).startswith("kdump.conf:2: ")
    assert words in problem.message
