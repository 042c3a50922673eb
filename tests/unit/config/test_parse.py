# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump.conf: what it says, and what is said of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumpd.config import (
    Action,
    Compression,
    Config,
    DumpSettings,
    parse_config,
    read_config,
)
from kdumpd.config.age_keys import identity_text, recipient_text
from kdumpd.config.capture import (
    CaptureConfig,
    LocalDestination,
    NfsDestination,
    RawDestination,
    SshDestination,
)
from kdumpd.config.layout import Layout, host_label
from kdumpd.config.model import DEFAULT_DUMP, Deadlines, Hooks
from kdumpd.config.parse import directives
from kdumpd.errors import ConfigError

NAME = "/etc/kdump.conf"


def parse(text: str) -> Config:
    return parse_config([(NAME, text)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Config()),
        ("# only a comment\n\n   \n\t# another\n", Config()),
        ("path /var/crash # where", Config()),
        ("path //srv//crash/", Config(path="/srv/crash")),
        ('path "/srv/crash"', Config(path="/srv/crash")),
        ("path\t/srv", Config(path="/srv")),
        (
            "path\t/srv # or /var\r\nsshkey /root/.ssh/kdump_id_rsa",
            Config(path="/srv", sshkey="/root/.ssh/kdump_id_rsa"),
        ),
        ("\ufeffpath /srv", Config(path="/srv")),
        ("core_collector makedumpfile -d 17 -c", Config(dump=DumpSettings(levels=(17,), compression=Compression.ZLIB))),
        (
            "core_collector makedumpfile -l --message-level 7 -d 31",
            Config(dump=DumpSettings(levels=(31,), compression=Compression.LZO)),
        ),
        ("core_collector makedumpfile -d31 -z", Config()),
        (
            "core_collector makedumpfile -d31,1 -z",
            Config(dump=DumpSettings(levels=(31, 1), compression=Compression.ZSTD)),
        ),
        (
            "core_collector makedumpfile -F --message-level=1 --num-threads 4",
            Config(dump=DumpSettings(flattened=True, threads=4)),
        ),
        (
            "final_action poweroff\nfailure_action halt",
            Config(final_action=Action.POWEROFF, failure_action=Action.HALT),
        ),
        ("default halt", Config(failure_action=Action.HALT)),
        ("path /crash/%HOST", Config(path=f"/crash/{host_label(os.uname().nodename)}")),
        ("layout debian", Config(layout=Layout.DEBIAN)),
        ("path /var/crash/%HOST-%DATE", Config(path="/var/crash")),
        ("path /%DATE", Config(path="/")),
        ("core_collector scp", Config(dump=DumpSettings(elf=True))),
        ("core_collector cp --sparse=always", Config(dump=DumpSettings(elf=True))),
        ("force_rebuild 1", Config()),
        ("force_no_rebuild 1", Config(force_no_rebuild=True)),
        ("keep_crashes 5\nkeep_days 90", Config(keep_crashes=5, keep_days=90)),
        (
            "level 1, 17,31\ncompress zlib 9\nthreads 2",
            Config(dump=DumpSettings(levels=(1, 17, 31), compression=Compression.ZLIB, compression_level=9, threads=2)),
        ),
        (
            "compress none\nkeep_free 2G",
            Config(dump=dataclasses.replace(DEFAULT_DUMP, compression=Compression.NONE, keep_free_bytes=2 << 30)),
        ),
        ("keep_free 10%", Config(dump=dataclasses.replace(DEFAULT_DUMP, keep_free_percent=10))),
        (
            "level 17\ncore_collector makedumpfile -c",
            Config(dump=DumpSettings(levels=(17,), compression=Compression.ZLIB)),
        ),
        (
            "failure_action shell\nshell_timeout 0",
            Config(failure_action=Action.SHELL, deadlines=Deadlines(shell_sec=0)),
        ),
        (
            "deadline_total 2h\ndeadline_target 10min\ndeadline_network 90\ndeadline_stall 45 s\ndeadline_hook 5s",
            Config(deadlines=Deadlines(total_sec=7200, target_sec=600, network_sec=90, stall_sec=45, hook_sec=5)),
        ),
        (
            "kdump_pre /usr/local/bin/pre\nkdump_post /var/crash/scripts/kdump-post.sh\nkdump_emergency /e.sh",
            Config(
                kdump_pre="/usr/local/bin/pre",
                kdump_post="/var/crash/scripts/kdump-post.sh",
                kdump_emergency="/e.sh",
            ),
        ),
        (
            "extra_bins /usr/bin/lftp /bin/ping /bin/ping\nextra_modules gfs2 nvme-fc",
            Config(extra_bins=("/usr/bin/lftp", "/bin/ping"), extra_modules=("gfs2", "nvme-fc")),
        ),
    ],
)
def test_values(text: str, expected: Config | None) -> None:
    found = parse(text)
    if expected is None:
        assert found.errors
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("text", "message", "fatal"),
    [
        ("pth /x", "unknown directive 'pth'; did you mean 'path'?", False),
        ("frobnicate", "unknown directive 'frobnicate'", False),
        ("path x", "path must begin with a slash, 'x' does not", True),
        ("path /a/../b", "path must not contain '..'", True),
        ("path", "'path' has no value", True),
        ("\npath /a\npath /b", "'path' was already set in line 2", True),
        ("final_action dance", "'dance' is not an action; use one of reboot, halt, poweroff", True),
        ("final_action shell", "'shell' is not an action; use one of reboot, halt, poweroff", True),
        ("failure_action dump_to_root", "did you mean 'dump_to_rootfs'?", True),
        ("level 32", "'32' is not a dump level from 0 to 31", True),
        ("layout ubuntu", "'ubuntu' is not a layout; use one of kdumpd, rhel, debian", True),
        ("compress zst", "did you mean 'zstd'?", True),
        ("compress zlib 10", "'10' is not a level of zlib; use auto or a number from 1 to 9", True),
        ("compress lzo 3", "lzo has no levels", True),
        ("threads 0", "'0' is not a number of threads from 1 to 1024", True),
        ("force_no_rebuild maybe", "'maybe' is neither 1 nor 0", True),
        ("keep_free lots", "'lots' is neither a size nor a share", True),
        ("keep_crashes 0", "'0' is not a number of crashes from 1", True),
        ("deadline_total 10 weeks", "'10 weeks' is not a time; write seconds", True),
        ("deadline_total 5", "'5' is not between 60 and 86400 seconds", True),
        ("deadline_stal 60", "did you mean 'deadline_stall'?", False),
        ("kdump_pre x.sh", "the program to run must begin with a slash", True),
        ("kdump_post /bin/x --flag", "one path without blanks", True),
        ("extra_bins /bin/lftp lftp", "a program must begin with a slash, 'lftp' does not", True),
        ("extra_modules gfs2 ../x", "'../x' is not the name of a kernel module", True),
        ("final_action rebot", "did you mean 'reboot'?", True),
        ("sshkey id_ed25519", "the file of the key must begin with a slash", True),
        ("core_collector external", "followed by a program's name or path", True),
        ("core_collector lftp -d 31", "core_collector 'lftp' is not available; use makedumpfile's", True),
        ("path /crash/%IP", "'%IP' in path is not known; %HOST and %DATE are", True),
        ("path /crash/%DATE/x", "%DATE may stand in the last part of path only", True),
        ("core_collector makedumpfile -d 32", "dump level '32'", True),
        ("core_collector makedumpfile -d", "option '-d' needs a value", True),
        ("core_collector makedumpfile --erase x", "option '--erase' is not known", True),
        ("fence_kdump_nodes node1 -x", "'-x'", True),
        ("fence_kdump_args -p 7410 node2", "are not arguments of fence_kdump_send", True),
        ("fence_kdump_args -f ipx", "are not arguments of fence_kdump_send", True),
        ("auto_reset_crashkernel yes", "'auto_reset_crashkernel' has no effect", False),
        ("builder busybocks", "'busybocks' is not a builder; use one of busybox, dracut, initramfs-tools", True),
        ("dracut_args --add 'lvm", "dracut_args has a quote that does not end", True),
        ("dracut_args --regenerate-all", "'--regenerate-all' cannot be given to dracut here", True),
        ("link_delay 5", "'link_delay' is obsolete", False),
        ("path /a\x00b", "control character", True),
        ("# a comment\rpath /srv", "control character", True),
        ("path /a\u200bb", "cannot be seen: U+200B", True),
    ],
)
def test_problems_name_their_line(text: str, message: str, fatal: bool) -> None:
    (problem,) = parse(text).problems
    assert message in problem.message
    assert problem.fatal is fatal
    assert str(problem).startswith(f"{NAME}:{len(text.split(chr(10)))}: ")


def test_a_later_file_overrides(tmp_path: Path) -> None:
    folder = tmp_path / "etc/kdump.conf.d"
    folder.mkdir(parents=True)
    (tmp_path / "etc/kdump.conf").write_text("path /one\nfinal_action halt\n")
    (folder / "10-b.conf").write_text("path /two\n")
    (folder / "20-a.conf").write_text("path /three\noops\n")
    (folder / "30-masked.conf").symlink_to("/dev/null")
    (folder / "readme").write_text("path nonsense")
    found = read_config(tmp_path)
    assert (found.path, found.final_action) == ("/three", Action.HALT)
    assert [str(problem) for problem in found.problems] == ["/etc/kdump.conf.d/20-a.conf:2: unknown directive 'oops'"]


# The forms of RHEL's own example file and of the examples in its kdump.conf(5).
RHEL = """
#raw /dev/vg/lv_kdump
ext4 /dev/vg/lv_kdump
path /var/crash
core_collector makedumpfile -l --message-level 7 -d 31
kdump_post /var/crash/scripts/kdump-post.sh
kdump_pre /var/crash/scripts/kdump-pre.sh
kdump_emergency /var/crash/scripts/kdump-emergency.sh
extra_bins /usr/bin/lftp
extra_modules gfs2
default shell
final_action poweroff
force_rebuild 1
dracut_args --omit-drivers "cfg80211 snd" --add-drivers "ext2 ext3"
fence_kdump_args -p 7410 -f auto -c 0 -i 10
auto_reset_crashkernel yes
"""


@pytest.mark.parametrize(
    "text",
    [
        RHEL,
        "raw /dev/sdb1\n",
        "raw /dev/vg/lv_kdump\n",
        "ext4 /dev/vg/lv_kdump\n",
        "ext4 LABEL=/boot\n",
        "ssh user@my.server.com\n",
        "fence_kdump_nodes node1 node2\n",
        "core_collector makedumpfile -l --message-level 7 -d 31\n",
        "core_collector cp\n",
        "net my.server.com:/export/tmp\n",
        "net user@my.server.com\n",
        "default mount_root_run_init\n",
        "link_delay 60\ndisk_timeout 30\noptions bonding mode=active-backup\nblacklist gfs2\ndebug_mem_level 3\n",
        'dracut_args --mount "192.168.0.1:/export /mnt nfs defaults"\n',
        "ext4 UUID=03138356-5e61-4ab3-b58e-27507ac41937\n",
        "nfs my.server.com:/export/tmp\n",
        "nfs [2001:db8::1:2:3:4]:/export/tmp\n",
        "ssh user@my.server.com\nsshkey /root/.ssh/kdump_id_rsa\n",
        "ssh user@2001:db8::1:2:3:4\nsshkey /root/.ssh/mykey\n",
        "virtiofs myfs\npath /var/crash\n",
        "core_collector makedumpfile -F -l --message-level 7 -d 31\nssh user@host\n",
        "core_collector makedumpfile -c --message-level 1 -d 31\n",
        "core_collector scp\nssh user@host\n",
        "core_collector cp --sparse=always\n",
        "failure_action dump_to_rootfs\n",
        "force_no_rebuild 1\n",
    ],
)
def test_what_rhel_takes_is_taken(text: str) -> None:
    assert parse(text).errors == ()


def test_a_later_core_collector_says_all_there_is_to_say() -> None:
    found = parse_config([("a", "level 1\nkeep_free 1G\n"), ("b", "core_collector makedumpfile -c\nthreads 3\n")])
    expected = DumpSettings(compression=Compression.ZLIB, threads=3, keep_free_bytes=1 << 30)
    assert found.dump == expected
    assert parse_config([("a", "core_collector makedumpfile -c\n"), ("b", "level 1\n")]).dump.levels == (1,)


def test_no_file_is_the_default(tmp_path: Path) -> None:
    assert read_config(tmp_path) == Config()


def test_an_unreadable_file_is_a_fatal_problem(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/kdump.conf").write_bytes(b"path /x\xff\n")
    (problem,) = read_config(tmp_path).errors
    assert "not UTF-8" in str(problem)
    (tmp_path / "etc/kdump.conf").unlink()
    (tmp_path / "etc/kdump.conf").mkdir()
    (problem,) = read_config(tmp_path).errors
    assert "Is a directory" in str(problem)


LIKELY = ("1", "0", "10min", "5", "/bin/true", "31,1", "zstd 3", "makedumpfile -E", "50%", "debian", "UUID=1", "a@b:2")


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from([*sorted(directives()), "x"]), st.text() | st.sampled_from(LIKELY))))
def test_any_text_gives_a_config_and_sentences(lines: list[tuple[str, str]]) -> None:
    found = parse("\n".join(f"{name} {value}" for name, value in lines))
    assert found.path.startswith("/")
    assert all(0 <= level <= 31 for level in found.dump.levels)
    assert all(problem.message.isprintable() for problem in found.problems)
    assert not (found.dump.elf and found.dump.compression is not Compression.NONE)


DESTINATIONS = (
    LocalDestination(device="UUID=x", fstype="ext4", directory="/crash"),
    RawDestination(device="/dev/sdb"),
    NfsDestination(server="fd00::1", export="/export", directory="/crash"),
    SshDestination(user="kdump", host="db2", port=2222, directory="/crash"),
)
CAPTURE = CaptureConfig(
    hostname="h", kernel="6.1", destinations=DESTINATIONS, dump=DEFAULT_DUMP,
    final_action=Action.REBOOT, failure_action=Action.HALT, deadlines=Deadlines(target_sec=77, shell_sec=0),
    hooks=Hooks(kdump_pre=("/a",), post=("/b", "/c")), extra_bins=("/bin/lftp",), extra_modules=("gfs2",),
)  # fmt: skip


def test_the_capture_kernels_settings_travel() -> None:
    text = CAPTURE.to_json()
    assert CaptureConfig.from_json(text, "s") == CAPTURE
    for bad in (
        "",
        "{}",
        text.replace("31", '"x"'),
        text.replace("31", "32"),
        text.replace('"halt"', '"dance"'),
        text.replace("2222", '"x"'),
        text.replace('"raw"', '"tape"'),
        text.replace("77", '"x"'),
        text.replace('"/b"', "1"),
        text.replace("fd00::1", "a").replace('"a"', "1"),
    ):
        with pytest.raises(ConfigError, match=r"^/s: not a capture configuration"):
            CaptureConfig.from_json(bad, "/s")


KEYS = [recipient_text(bytes([9, *range(30), number])) for number in range(3)]


def test_keys_to_encrypt_to_add_up_in_a_file() -> None:
    assert parse_config([]).encrypt_to == ()
    text = f"encrypt_to {KEYS[0]}\npath /x\nencrypt_to {KEYS[1]} {KEYS[0]}\n"
    config = parse_config([("kdump.conf", text)])
    assert (config.encrypt_to, config.problems) == ((KEYS[0], KEYS[1]), ())
    # A later file says whom alone.
    config = parse_config([("kdump.conf", text), ("drop", f"encrypt_to {KEYS[2]}\n")])
    assert config.encrypt_to == (KEYS[2],)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("", "'encrypt_to' has no value"),
        (KEYS[0][:-1] + ("q" if KEYS[0][-1] != "q" else "p"), "its checksum is wrong"),
        (identity_text(bytes(range(32))), "this is a private key, which must not be here"),
        ("/root/key.txt", "is no public key of age, which begins with age1; age-keygen makes a pair"),
    ],
)
def test_a_key_that_is_none_keeps_the_file_from_being_used(value: str, sentence: str) -> None:
    config = parse_config([("kdump.conf", f"path /x\nencrypt_to {KEYS[0]}\nencrypt_to {value}\n")])
    (problem,) = config.problems
    assert (problem.line, problem.fatal) == (3, True)
    assert sentence in problem.message
    assert "AGE-SECRET-KEY-1" not in problem.message.upper()
