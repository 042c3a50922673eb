# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.cmdline: what the capture kernel is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumpd.host.cmdline import (
    Wishes,
    capture_cmdline,
    capture_cpus,
    parse_boot_apicid,
    parse_cmdline,
    read_cmdline,
    split_words,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  a  b=c\n", ["a", "b=c"]),
        ('dyndbg="file a.c +p" quiet', ['dyndbg="file a.c +p"', "quiet"]),
        ('"foo=a b" c', ['"foo=a b"', "c"]),
        ('a="open end', ['a="open end']),
    ],
)
def test_words_end_at_blanks_outside_of_quotes(text: str, words: list[str]) -> None:
    assert list(split_words(text)) == words


def test_parameters_end_at_two_dashes() -> None:
    assert parse_cmdline('a b= "c=d e" f="g h" -- crashkernel=1G') == (
        ("a", None),
        ("b", ""),
        ("c", "d e"),
        ("f", "g h"),
    )


DEBIAN = (
    "BOOT_IMAGE=/boot/vmlinuz-6.1.0-56-amd64 root=UUID=0f0e ro console=tty0 console=ttyS0,115200 "
    "crashkernel=512M-:192M quiet splash hugepages=64 default_hugepagesz=1G panic_on_warn=1 mem=8G"
)


def test_what_serves_the_running_system_alone_is_left_out() -> None:
    words = capture_cmdline(DEBIAN, "x86_64", boot_apicid=0).split()
    assert words[:2] == ["console=tty0", "console=ttyS0,115200"]
    names = {word.partition("=")[0] for word in words}
    assert not names & {
        "BOOT_IMAGE",
        "root",
        "ro",
        "crashkernel",
        "quiet",
        "splash",
        "hugepages",
        "panic_on_warn",
        "mem",
    }


def test_x86_gets_what_the_distributions_add() -> None:
    words = capture_cmdline("console=ttyS0", "x86_64", boot_apicid=3).split()
    wanted = (
        "irqpoll nr_cpus=1 reset_devices cgroup_disable=memory mce=off numa=off panic=10 acpi_no_memhotplug "
        "transparent_hugepage=never nokaslr hest_disable cma=0 pcie_ports=compat novmcoredd hugetlb_cma=0 "
        "kfence.sample_interval=0 rootfstype=ramfs disable_cpu_apicid=3 cgroup.memory=nokmem"
    )
    assert set(wanted.split()) <= set(words)
    assert len(words) == len(set(words))


def test_without_a_known_boot_processor_none_is_disabled() -> None:
    assert "disable_cpu_apicid" not in capture_cmdline("", "x86_64")
    assert "disable_cpu_apicid" not in capture_cmdline("", "aarch64", boot_apicid=0)


def test_our_value_replaces_the_running_one_under_either_spelling() -> None:
    words = capture_cmdline("panic=0 nr-cpus=64 transparent-hugepage=always irqpoll", "x86_64").split()
    assert [word for word in words if word.startswith("panic=")] == ["panic=10"]
    assert [word for word in words if word.startswith("nr")] == ["nr_cpus=1"]
    assert words.count("irqpoll") == 1


@pytest.mark.parametrize(
    "word",
    [
        "pci=nommconf",
        "intel_iommu=on",
        "nvme_core.default_ps_max_latency_us=0",
        "earlyprintk=serial,ttyS0",
        'dyndbg="file drivers/nvme/* +p"',
        "nomodeset",
        "acpi=off",
        "pcie_aspm=off",
    ],
)
def test_what_the_hardware_needs_is_kept(word: str) -> None:
    assert word in capture_cmdline(f"quiet {word} root=/dev/sda1", "x86_64")


@pytest.mark.parametrize(
    "word",
    [
        "rd.luks.key=/keyfile",
        "rd.luks.uuid=1234",
        "systemd.set_credential=foo:hunter2",
        "my_token=hunter2",
        "API_KEY=hunter2",
        "db.password=hunter2",
        "foo.secret=hunter2",
        "url=https://user:hunter2@example.org/x",
        "ds=nocloud;s=http://hunter2/",
        "init=/bin/hunter2",
        "netconsole.privatekey=hunter2",
    ],
)
def test_secrets_and_user_space_are_not_copied(word: str) -> None:
    line = capture_cmdline(f"console=ttyS0 {word}", "x86_64")
    assert word not in line
    assert "hunter2" not in line


def test_nothing_behind_two_dashes_and_no_open_quote_is_copied() -> None:
    line = capture_cmdline('console=ttyS0 foo="never closed -- bar', "x86_64")
    assert "foo" not in line
    assert line.count('"') == 0
    assert "single" not in capture_cmdline("console=ttyS0 -- single", "x86_64")


def test_other_machines_get_their_own_additions() -> None:
    assert "swiotlb=noforce" in capture_cmdline("", "aarch64")
    assert "mce=off" not in capture_cmdline("", "aarch64")
    assert "maxcpus=1" in capture_cmdline("", "mips64")


def test_derived_lines_are_stable() -> None:
    once = capture_cmdline(DEBIAN, "x86_64", boot_apicid=0)
    assert capture_cmdline(once, "x86_64", boot_apicid=0) == once


def test_initcalls_that_are_left_out_already_stay_so() -> None:
    ours = "initcall_blacklist=tracer_init_tracefs"
    theirs = "initcall_blacklist=sysfb_init"
    words = capture_cmdline(theirs, "x86_64", wishes=Wishes(append="initcall_blacklist=foo")).split()
    assert {ours, theirs, "initcall_blacklist=foo"} <= set(words)
    assert "tracer" not in capture_cmdline("", "aarch64", wishes=Wishes(remove=("initcall_blacklist",)))
    assert ours in capture_cmdline("", "s390x")


def test_boot_processor_is_the_one_called_zero() -> None:
    text = "processor\t: 1\napicid\t\t: 5\n\nprocessor\t: 0\ninitial apicid\t: 9\napicid\t\t: 2\n"
    assert parse_boot_apicid(text) == 2
    assert parse_boot_apicid("processor\t: 0\nBogoMIPS\t: 50\n") is None


def test_a_missing_file_is_an_empty_line(tmp_path: Path) -> None:
    assert read_cmdline(tmp_path) == ""


def test_what_kdump_conf_wants() -> None:
    wishes = Wishes(remove=("irqpoll", "console"), append='nr-cpus=2 dyndbg="file a.c +p" console=ttyS9')
    words = capture_cmdline("console=ttyS0 acpi=ht", "x86_64", cpus=4, wishes=wishes)
    assert words.startswith("acpi=ht ")
    assert words.endswith(' nr-cpus=2 dyndbg="file a.c +p" console=ttyS9')
    assert "irqpoll" not in words
    assert "nr_cpus=4" not in words
    assert "console=ttyS0" not in words


def test_a_line_of_its_own_replaces_the_running_one() -> None:
    words = capture_cmdline("console=ttyS0 root=/dev/sda1", "x86_64", wishes=Wishes(base="console=ttyS5 root=/dev/sdb"))
    assert words.split()[0] == "console=ttyS5"
    assert "ttyS0" not in words
    assert "root=" not in words
    assert "reset_devices" in words


@pytest.mark.parametrize(
    ("arch", "present", "spare_mib", "cpus"),
    [
        ("x86_64", 1, 500, 1),
        ("x86_64", 8, -50, 1),
        ("x86_64", 8, 40, 1),
        ("x86_64", 8, 48, 2),
        ("x86_64", 2, 500, 2),
        ("x86_64", 256, 500, 4),
        ("aarch64", 8, 500, None),
    ],
)
def test_processors_are_given_as_memory_allows(arch: str, present: int, spare_mib: int, cpus: int | None) -> None:
    assert capture_cpus(arch, present, spare_mib << 20) == cpus


def test_the_number_of_processors_is_on_the_line_once() -> None:
    for arch, cpus, word in (("x86_64", 3, "nr_cpus=3"), ("ppc64le", None, "nr_cpus=16"), ("vax", 2, "nr_cpus=2")):
        words = capture_cmdline("", arch, cpus=cpus).split()
        assert [word for word in words if "cpus" in word] == [word]
