# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of kdump.conf that say where dumps go."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.config import Config, LocalTarget, NfsTarget, RawTarget, SshTarget, Target, parse_config
from kdumpd.config.target_lines import NAMES

FILE = "/etc/kdump.conf"


def parse(text: str) -> Config:
    return parse_config([(FILE, text)])


def local(fstype: str, device: str) -> LocalTarget:
    return LocalTarget(fstype=fstype, device=device)


def ssh(user: str, host: str, port: int = 22) -> SshTarget:
    return SshTarget(user=user, host=host, port=port)


def nfs(server: str, export: str) -> NfsTarget:
    return NfsTarget(server=server, export=export)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ext4 UUID=0123-ab", local("ext4", "UUID=0123-ab")),
        ("ext3 LABEL=dumps", local("ext3", "LABEL=dumps")),
        ("ext3 LABEL=/boot", local("ext3", "LABEL=/boot")),
        ("ext2 /dev/sda3", local("ext2", "/dev/sda3")),
        ("xfs /dev/disk/by-id/x.1", local("xfs", "/dev/disk/by-id/x.1")),
        ("xfs /dev/mapper/vg0-lv--crash", local("xfs", "/dev/mapper/vg0-lv--crash")),
        ("btrfs /dev/disk/by-label/my\\x20disk", local("btrfs", "/dev/disk/by-label/my\\x20disk")),
        ("minix /dev/fd0", local("minix", "/dev/fd0")),
        ("vfat LABEL=STICK", local("vfat", "LABEL=STICK")),
        ("virtiofs myfs", local("virtiofs", "myfs")),
        ("raw /dev/disk/by-path/pci-0000:00:1f.2-ata-1", RawTarget(device="/dev/disk/by-path/pci-0000:00:1f.2-ata-1")),
        ("nfs my.server.com:/export/tmp", nfs("my.server.com", "/export/tmp")),
        ("nfs 192.0.2.7:/", nfs("192.0.2.7", "/")),
        ("nfs [2001:DB8::1]:/export/", nfs("2001:db8::1", "/export")),
        ("nfs [fe80::1%eth0]:/x", nfs("fe80::1%eth0", "/x")),
        ("net host:/export", nfs("host", "/export")),
        ("net user@host", ssh("user", "host")),
        ("ssh user@my.server.com", ssh("user", "my.server.com")),
        ("ssh user@my.server.com:2222", ssh("user", "my.server.com", 2222)),
        ("ssh user@[2001:db8::1]:2222", ssh("user", "2001:db8::1", 2222)),
        ("ssh user@[2001:db8::1]", ssh("user", "2001:db8::1")),
        ("ssh user@2001:db8::1", ssh("user", "2001:db8::1")),
        ('ssh "MACHINE$@host_1"', ssh("MACHINE$", "host_1")),
    ],
)
def test_a_target(text: str, target: Target) -> None:
    assert parse(text) == Config(targets=(target,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ext4 sda1", "'sda1' names no device; use /dev/..., LABEL=... or UUID=...; did you mean '/dev/sda1'?"),
        ("ext4 uuid=0123", "did you mean 'UUID=0123'?"),
        ("ext4 /dev/../etc/shadow", "names no device"),
        ("ext3 UUID=/boot", "names no device"),
        ("ext3 LABEL=../x", "names no device"),
        ("xfs /dev/sda1 /mnt", "a target is one word"),
        ("raw UUID=1234", "'UUID=1234' names no device; use /dev/..."),
        ("raw sdb", "did you mean '/dev/sdb'?"),
        ("raw -o", "begins with a dash"),
        ("virtiofs a/b", "is not the tag of a virtiofs share"),
        ("nfs host", "is not a folder on a server; write nfs HOST:/EXPORT"),
        ("nfs user@host", "did you mean 'ssh user@host'?"),
        ("nfs user@host:/x", "has a user in it"),
        ("nfs 2001:db8::1:/x", "did you mean 'nfs [2001:db8::1]:/x'?"),
        ("nfs [::g]:/x", "neither the name of a host nor an address"),
        ("nfs host:/a/../b", "must not contain '..'"),
        ("nfs -ohost:/x", "begins with a dash"),
        ("nfs h,addr=1:/x", "neither the name of a host nor an address"),
        ("nfs 1.2.3.400:/x", "'1.2.3.400' is not an IPv4 address"),
        ("nfs :/x", "neither the name of a host nor an address"),
        (f"nfs {'a' * 64}.org:/x", "neither the name of a host nor an address"),
        ("ssh host", "did you mean 'ssh root@host'?"),
        ("ssh host:/x", "did you mean 'nfs host:/x'?"),
        ("ssh @host", "is not an account on a server"),
        ("ssh user:secret@host", "a password has no place"),
        ("ssh a$b@host", "is not the name of a user"),
        ("ssh user@-oProxyCommand=x", "neither the name of a host nor an address"),
        ("ssh user@host:/var/crash", "the folder on the server is set with: path /FOLDER"),
        ("ssh user@host:", "ends where a port should stand"),
        ("ssh user@[::1]:", "ends where a port should stand"),
        ("ssh user@[::1]22", "follows the address"),
        ("ssh user@host:0", "'0' is not a port"),
        ("ssh user@host:65536", "'65536' is not a port"),
        ("ssh user@[fe80::1%a b]", "a target is one word"),
        ("ssh user@fe80::1%$x", "'$x' is not the name of a network interface"),
        ("raw", "'raw' has no value"),
    ],
)
def test_what_is_no_target(text: str, message: str) -> None:
    found = parse(text)
    (problem,) = found.errors
    assert message in problem.message
    assert "secret" not in problem.message
    assert found.targets == ()


def test_several_targets_are_a_chain_in_their_order() -> None:
    found = parse("ssh user@host\npath /crash\next4 LABEL=dumps\nraw /dev/sdb\n")
    assert list(map(str, found.targets)) == ["ssh user@host", "ext4 LABEL=dumps", "raw /dev/sdb"]
    assert found.problems == ()


def test_the_same_target_twice_is_an_error() -> None:
    (problem,) = parse("nfs host:/export\nraw /dev/sdb\nnet host:/export/\n").errors
    assert str(problem).startswith(f"{FILE}:3: the target 'nfs host:/export' stands in line 1 already")


def test_a_drop_in_replaces_the_targets_before_it() -> None:
    main = (FILE, "ext4 LABEL=a\next4 LABEL=b\n")
    without, with_targets = ("/d/1.conf", "path /crash\n"), ("/d/2.conf", "ext4 LABEL=c\next4 LABEL=a\n")
    assert list(map(str, parse_config([main, without]).targets)) == ["ext4 LABEL=a", "ext4 LABEL=b"]
    assert list(map(str, parse_config([main, without, with_targets]).targets)) == ["ext4 LABEL=c", "ext4 LABEL=a"]


TEXT = st.text(
    alphabet=st.one_of(st.sampled_from('@:[]/%.-=# \t"$'), st.sampled_from(string.printable), st.characters())
)


@settings(max_examples=400)
@given(st.sampled_from(sorted(NAMES)), TEXT)
def test_any_value_gives_a_target_that_reads_back_or_one_sentence(name: str, value: str) -> None:
    found = parse(f"{name} {value}".replace("\n", " "))
    assert len(found.targets) + len(found.problems) == 1
    for target in found.targets:
        text = str(target)
        assert text.isprintable()
        assert len(text.split(" ")) == 2
        assert not text.split(" ")[1].startswith("-")
        assert parse(text).targets == (target,)
