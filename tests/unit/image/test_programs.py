# SPDX-License-Identifier: GPL-2.0-or-later
"""The administrator's programs in the image, and what the supervisor is told, asked in its own words."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from bus_bench import runs, wait

from kdumpd.config.capture import CaptureConfig, LocalDestination, SshDestination
from kdumpd.config.model import DEFAULT_DUMP, Action, Config, Deadlines, Hooks
from kdumpd.dumpfile.manifest import Manifest, Result
from kdumpd.errors import BuildError
from kdumpd.image.capture import find_init, read_hooks
from kdumpd.image.contents import Tree
from kdumpd.image.programs import add_programs
from kdumpd.image.supervisor import supervisor_files


def write(root: Path, name: str, text: str = "#!/bin/sh\n", mode: int = 0o755) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return f"/{name}"


def hooks(*paths: str) -> Hooks:
    return Hooks(kdump_post=paths)


def test_hooks_are_those_named_and_those_in_the_folders(tmp_path: Path) -> None:
    for name in ("pre.d/20-b", "pre.d/10-a", "post.d/x.sh", "emergency.d/e"):
        write(tmp_path, f"etc/kdump/{name}")
    write(tmp_path, "etc/kdump/pre.d/README", "read me", mode=0o644)
    (tmp_path / "etc/kdump/post.d/folder").mkdir()
    found = read_hooks(Config(kdump_pre="/opt/pre"), tmp_path)
    assert found == Hooks(
        kdump_pre=("/opt/pre",),
        pre=("/etc/kdump/pre.d/10-a", "/etc/kdump/pre.d/20-b"),
        post=("/etc/kdump/post.d/x.sh",),
        emergency=("/etc/kdump/emergency.d/e",),
    )
    assert len(found.programs) == 5
    assert read_hooks(Config(), tmp_path / "nothing") == Hooks()


def test_a_script_brings_its_interpreter_and_a_program_its_libraries(tmp_path: Path) -> None:
    tree = Tree()
    script = write(tmp_path, "opt/post", "#! /usr/bin/env -S bash -e\necho\n")
    elfs = add_programs(tree, hooks(script), ("/usr/bin/file",), tmp_path)
    assert set(tree.entries) >= {"opt/post", "usr/bin/bash", "usr/bin/file"}
    assert tree.entries["opt/post"].mode & 0o777 == 0o755
    assert elfs == ["/usr/bin/bash", "/usr/bin/file"]
    assert tree.sources["opt/post"].path == f"{tmp_path}/opt/post"


def test_what_the_image_has_already_stays(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_link("usr/bin/sh", "busybox")
    add_programs(tree, hooks(write(tmp_path, "opt/post")), ("/bin/sh",), tmp_path)
    assert tree.entries["usr/bin/sh"].content == b"busybox"
    assert tree.notes == ["/bin/sh is not added, the image has one already"]


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (None, 0, "the hook /opt/post does not exist"),
        ("#!/bin/sh\n", 0o644, "the hook /opt/post may not be executed"),
        ("#!/nowhere/perl\n", 0o755, "the interpreter of /opt/post, /nowhere/perl does not exist"),
        ("#!\n", 0o755, "the first line of /opt/post names no interpreter"),
    ],
)
def test_what_could_not_run_is_said_at_once(text: str | None, mode: int, message: str, tmp_path: Path) -> None:
    if text is not None:
        write(tmp_path, "opt/post", text, mode)
    with pytest.raises(BuildError, match=message):
        add_programs(Tree(), hooks("/opt/post"), (), tmp_path)


def test_a_file_that_no_kernel_starts_is_noted(tmp_path: Path) -> None:
    tree = Tree()
    add_programs(tree, hooks(write(tmp_path, "opt/post", "echo hello\n")), (), tmp_path)
    assert "is neither a program for this machine nor a script with #! at its start" in tree.notes[0]


CAPTURE = CaptureConfig(
    hostname="db 1",
    kernel="6.1",
    destinations=(
        SshDestination(user="kdump", host="h", port=22, directory="/x"),
        LocalDestination(device="UUID=1", fstype="ext4", directory="/var/my crash"),
        LocalDestination(device="LABEL=S", fstype="vfat", directory="/", options="umask=0077"),
    ),
    dump=DEFAULT_DUMP,
    final_action=Action.POWEROFF,
    failure_action=Action.SHELL,
    deadlines=Deadlines(total_sec=600, hook_sec=7),
    hooks=Hooks(post=("/a b", "/c"), kdump_emergency=("/e",)),
)


def ask(folder: Path, script: str) -> str:
    """The supervisor's own functions, run by busybox: everything in init before it begins to do something."""
    functions = find_init().read_text().split("\ntrap ", 1)[0].replace("conf=/etc/kdumpd", f"conf={folder}/etc/kdumpd")
    done = subprocess.run(
        ["/bin/busybox", "sh", "-c", f'{functions}\nsay() {{ echo "$*"; }}\n{script}'],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout


def told(tmp_path: Path, capture: CaptureConfig) -> Path:
    for name, text in supervisor_files(capture).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_supervisor_reads_what_it_is_told(tmp_path: Path) -> None:
    folder = told(tmp_path, CAPTURE)
    names = ("hostname", "targets", "final_action", "failure_action", "deadline_total", "deadline_hook", "late_hooks")
    script = "".join(f"setting {name} missing\n" for name in names)
    assert ask(folder, script).split("\n")[:-1] == ["db_1", "3", "poweroff", "shell", "600", "7", "3"]
    assert ask(folder, "number deadline_total 1; number hostname 5; number nothing 6") == "600\n5\n6\n"
    loop = 'while read -r k d t o f; do [ $k = local ] && echo "$d,$t,$o,$f"; done <"$conf/supervisor"'
    assert ask(folder, loop) == "UUID=1,ext4,rw,/var/my crash\nLABEL=S,vfat,umask=0077,/\n"
    assert ask(folder, 'cat "$conf/hooks/post"') == "/a b\n/c\n"
    assert not (folder / "etc/kdumpd/hooks/pre").exists()


def test_after_dump_to_rootfs_the_machine_reboots(tmp_path: Path) -> None:
    folder = told(tmp_path, dataclasses.replace(CAPTURE, failure_action=Action.DUMP_TO_ROOTFS))
    assert ask(folder, "setting failure_action missing") == "reboot\n"


def test_the_note_is_a_manifest(tmp_path: Path) -> None:
    """`mount` and `dmesg` are ours here; all else is what happens in the capture kernel."""
    folder = told(tmp_path, CAPTURE)
    (tmp_path / "disk").mkdir()
    script = f"""
    run={tmp_path}/run reason="python3 could not be started (status 127)"
    mount() {{ rmdir "$run/note"; ln -s {tmp_path}/disk "$run/note"; }}
    dmesg() {{ echo messages; }}
    umount() {{ :; }}
    sync() {{ :; }}
    note_on /dev/x ext4 rw /crash; umount; rm -f "$run/note"
    note_on /dev/x ext4 rw /crash
    """
    ask(folder, script)
    first, second = sorted((tmp_path / "disk/crash").iterdir(), key=lambda path: (len(path.name), path.name))[:2]
    for crash in (first, second):
        assert crash.name.startswith("db_1-20")
        assert crash.stat().st_mode & 0o777 == 0o700
        assert (crash / "kexec-dmesg.log").read_text() == "messages\n"
        assert (crash / "manifest.json").stat().st_mode & 0o777 == 0o600
        manifest = Manifest.from_json((crash / "manifest.json").read_text(), "note")
        assert (manifest.result, manifest.hostname) == (Result.FAILED, "db 1")
        assert manifest.reason == "python3 could not be started (status 127)"
        assert json.loads((crash / "manifest.json").read_text())["started_usec"] > 10**15


def test_programs_run_with_their_time_and_their_status(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    quick = write(programs, "quick", '#!/bin/sh\necho "quick $1 $KDUMP_RESULT"\n')
    failing = write(programs, "failing", "#!/bin/sh\nexit 3\n")
    hanging = write(programs, "hanging", f"#!/bin/sh\nsleep 1000 &\necho $! >{tmp_path}/child\nwait\n")
    paths = tuple(f"{programs}{path}" for path in (quick, failing, hanging))
    folder = told(tmp_path, dataclasses.replace(CAPTURE, hooks=Hooks(post=paths)))
    said = ask(folder, "tick=0.1 hook_time=1; export KDUMP_RESULT=complete; hooks post 0; echo $?; hooks pre; echo $?")
    assert "quick 0 complete\n" in said
    assert f"{paths[1]} ended with status 3\n" in said
    assert f"{paths[2]} was ended after 1 s\n" in said
    assert said.endswith("\n3\n0\n")  # what was ended has no status of its own
    child = (tmp_path / "child").read_text().strip()
    wait(lambda: not runs(child), "the end of the child")
