# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor's own functions under the shell that runs them, with collectors and programs that hang, die and lie.

The text of init is taken up to where it begins to act; paths that would reach this machine are replaced, and what
mounts or reboots is a function that only tells.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time
from pathlib import Path

import pytest
from bus_bench import runs, wait

from kdumpd.image.contents import APPLETS

INIT = Path(__file__).resolve().parents[3] / "initramfs/busybox/init"
# What ends a machine or touches its mounts tells instead.
_HARMLESS = """
reboot() { echo "REBOOT"; }
halt() { echo "HALT"; }
poweroff() { echo "POWEROFF"; }
mount() { echo "mount $*"; }
umount() { echo "umount $*"; }
sync() { :; }
dmesg() { echo "kdumpd: told"; }
tick=0.1 silence=3 hook_time=2 shell_time=1 targets=2 total=60 guard=none
limit=$(($(uptime) + total)) end_of_all=$limit
open_quiet || echo "NO PIPE"
"""


class Supervisor:
    """init's functions in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.conf = folder / "conf"
        for path in (self.run / "answers", self.conf / "hooks", folder / "dev", folder / "watchdog"):
            path.mkdir(parents=True)
        (folder / "bin").mkdir()
        for name in (*APPLETS, "busybox"):
            (folder / "bin" / name).symlink_to("/bin/busybox")
        self.settings("hostname vm\n")
        text, found, _ = INIT.read_text().partition("\ntrap '' ")
        assert found
        for old, new in {
            "/proc/sysrq-trigger": "sysrq",
            "/dev/kmsg": "kmsg",
            "/usr/bin/python3": "python3",
            "/sys/class/watchdog": "watchdog",
            "/sys/class/block": "block",
            "/dev/console": "console",
            "/proc/mounts": "mounts",
            "/proc/vmcore": "vmcore",
            '"/dev/$1"': "dev/$1",
            "/etc/kdumpd": "conf",
            "/run/kdumpd": "run",
            "PATH=/kdumpd/bin": "PATH=bin",
        }.items():
            assert old in text, old
            text = text.replace(old, f"PATH={folder}/bin" if new == "PATH=bin" else str(folder / new))
        # Nothing of this machine but the facts about processes, time and memory.
        assert set(re.findall(r"/proc/[a-z]+|/sys/[a-z]+", text)) <= {"/proc/uptime", "/proc/meminfo", "/sys/module"}, (
            text
        )
        self._text = text
        (folder / "mounts").touch()
        (folder / "console").touch()

    def settings(self, text: str) -> None:
        (self.conf / "supervisor").write_text(text)

    def program(self, text: str, path: str = "python3") -> Path:
        """A program in sh."""
        place = self.folder / path
        place.write_text(f"#!/bin/busybox sh\ncd {self.folder}\n{text}\n")
        place.chmod(0o755)
        return place

    def hooks(self, kind: str, *texts: str) -> None:
        places = [self.program(text, f"{kind}-{number}") for number, text in enumerate(texts)]
        (self.conf / "hooks" / kind).write_text("".join(f"{place}\n" for place in places))

    def call(self, script: str, timeout: float = 120) -> str:
        """What the shell says, errors of its own included."""
        path = self.folder / "script"
        path.write_text(f"{self._text}\n{_HARMLESS}\n{script}\n")
        done = subprocess.run(
            ["/bin/busybox", "sh", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert "syntax error" not in done.stdout
        assert "NO PIPE" not in done.stdout
        return done.stdout


@pytest.fixture
def init(tmp_path: Path) -> Supervisor:
    return Supervisor(tmp_path)


CAPTURE = 'capture; echo "END status=$status after=$after reason=$reason"'
ARGUMENTS = 'echo "$*" >>calls; set -- $(wc -l <calls)'  # $1 becomes the number of the call


def test_it_notices_at_once_when_the_collector_ends(init: Supervisor) -> None:
    """Looking once a second it would find out after 3 s each time; a busy machine takes that long only now and then."""
    init.program("sleep 2.05")
    took = []
    for _ in range(5):
        said = init.call('read -r a _ </proc/uptime; capture; read -r b _ </proc/uptime; echo "FROM $a TO $b"')
        begin, end = (float(number) for number in re.findall(r"[\d.]+", said[said.index("FROM") :]))
        took.append(end - begin)
        if took[-1] < 2.9:
            break
    assert 2.0 < took[-1] < 2.9, took


@pytest.mark.parametrize("fault", ["quiet=", "exec 6<&-; quiet=; run=$run/missing; open_quiet; run=${run%/missing}"])
def test_without_a_pipe_to_wait_at_it_sleeps(init: Supervisor, fault: str) -> None:
    init.program(f"{ARGUMENTS}\nexec sleep 600")
    said = init.call(f'{fault}; echo "QUIET ${{quiet:-no}}"; {CAPTURE}')
    assert "QUIET no" in said
    assert "END status=137 after=2 reason=the collector was silent for 3 s" in said


def test_a_silent_collector_gives_way_to_the_next_target(init: Supervisor) -> None:
    init.program(f"{ARGUMENTS}\necho 1 >run/answers/target\ntouch run/alive\n[ $1 = 2 ] || exec sleep 600")
    began = time.monotonic()
    said = init.call(CAPTURE)
    assert 3 < time.monotonic() - began < 60
    assert "END status=0" in said
    first, second = (init.folder / "calls").read_text().splitlines()
    assert "capture --after 0 " in first
    assert "capture --after 1 " in second
    assert second.endswith("--because the collector was silent for 3 s")


def test_a_collector_that_never_gives_a_sign_of_life_is_ended_too(init: Supervisor) -> None:
    init.program(f"{ARGUMENTS}\nexec sleep 600")
    said = init.call(CAPTURE)
    assert "END status=137 after=2 reason=the collector was silent for 3 s" in said
    # The first target gets another try: nothing says that it was to blame.
    assert re.findall(r"--after (\d)", (init.folder / "calls").read_text()) == ["0", "0", "1"]


def test_a_hang_on_the_only_target_is_the_end(init: Supervisor) -> None:
    init.program(f"{ARGUMENTS}\necho 1 >run/answers/target\ntouch run/alive\nexec sleep 600")
    began = time.monotonic()
    said = init.call(f"targets=1; {CAPTURE}; sleep() {{ [ $1 != 60 ] || exit; command sleep 0; }}; (fail 1)")
    assert time.monotonic() - began < 60
    assert "END status=137 after=1 reason=the collector was silent for 3 s" in said
    assert "FAILED: the collector was silent for 3 s" in said
    assert "failure action: reboot" in said
    assert len((init.folder / "calls").read_text().splitlines()) == 1


def test_a_collector_that_is_alive_may_take_its_time_but_not_all(init: Supervisor) -> None:
    init.program("while :; do touch run/alive; sleep 1; done")
    began = time.monotonic()
    said = init.call(f"limit=$(($(uptime) + 8)) total=8; {CAPTURE}")
    assert 8 < time.monotonic() - began < 60
    assert "reason=the capture was not done within 8 s" in said


def test_a_killed_collector_is_tried_once_more_then_comes_the_next_target(init: Supervisor) -> None:
    init.program(f"{ARGUMENTS}\necho $(($1 > 2 ? 2 : 1)) >run/answers/target\n[ $1 -gt 2 ] || kill -9 $$")
    said = init.call(CAPTURE)
    assert "END status=0" in said
    assert [re.findall(r"--after (\d)", line) for line in (init.folder / "calls").read_text().splitlines()] == [
        ["0"],
        ["0"],
        ["1"],
    ]
    assert said.count("the collector was killed (status 137)") == 1
    assert said.count("FAILED: the collector was killed twice (status 137)") == 1


def test_without_python_the_reason_says_so(init: Supervisor) -> None:
    assert "reason=python3 could not be started (status 127): the image is damaged" in init.call(CAPTURE)
    init.program("exit 0").chmod(0o644)
    assert "reason=python3 could not be started (status 126)" in init.call(CAPTURE)


@pytest.mark.parametrize(("told", "reason"), [("no room", "no room"), ("", "the collector ended with status 1")])
def test_a_collector_that_gives_up_says_why(init: Supervisor, told: str, reason: str) -> None:
    init.program(f"echo '{told}' >run/answers/reason\nexit 1")
    said = init.call(CAPTURE)
    assert f"END status=1 after=0 reason={reason}\n" in said


def test_what_a_dead_collector_left_mounted_goes_away(init: Supervisor) -> None:
    lines = f"/dev/vda {init.run}/target ext4 rw 0 0\n10.0.0.1:/x {init.run}/early nfs4 rw 0 0\n/dev/vdb /usr ext4 rw\n"
    (init.folder / "mounts").write_text(lines)
    said = init.call("collector=1000000000; unmount_targets")
    # A silent server must not hold it up, so that NFS is only detached.
    assert said.splitlines() == [f"umount {init.run}/target", f"umount -l {init.run}/early"]


def test_programs_find_the_dump_where_it_can_be_mounted(init: Supervisor) -> None:
    script = 'KDUMP_PATH=/crash/vm-1; show_dump; echo "at=$KDUMP_DIR"'
    (init.run / "answers/mount").write_text("/dev/vda ext4 rw,nosuid,noatime\n")
    assert init.call(script) == "at=\n"  # nobody asks
    init.hooks("kdump_post", "true")
    assert init.call(script).splitlines() == [
        f"mount -t ext4 -o rw,nosuid,noatime /dev/vda {init.run}/target",
        f"at={init.run}/target/crash/vm-1",
    ]
    assert init.call(f"mount() {{ return 32; }}; {script}") == "at=\n"
    (init.run / "answers/mount").write_text("\n")
    assert init.call(script) == "at=\n"


def test_a_zombie_with_any_name_counts_as_dead(init: Supervisor) -> None:
    done = init.call("""
        # Its parent becomes a program that asks for no child's end; a shell would, as soon as it waits for anything.
        ( busybox sh -c 'printf "a) R (b" >/proc/self/comm; exit 7' & echo $! >"$run/zombie"; exec busybox sleep 60 ) &
        until read -r zombie <"$run/zombie" && busybox grep -q '^State:.Z' "/proc/$zombie/status"; do
            sleep 0.1
        done 2>/dev/null
        busybox grep -c ' (a) R (b) Z ' "/proc/$zombie/stat"
        running "$zombie" && echo ALIVE
        busybox kill $!
        bounded 5 busybox sh -c 'printf "c d e" >/proc/self/comm; exit 7'
        echo "status $?"
    """)
    assert done == "1\nstatus 7\n"


def test_a_command_is_given_its_time_and_no_more(init: Supervisor) -> None:
    began = time.monotonic()
    said = init.call("bounded 2 sleep 60; echo $?; kill $job; bounded 5 false; echo $?; bounded 5 true; echo $?")
    assert time.monotonic() - began < 40  # of the sixty that it sleeps
    assert said.splitlines() == ["[kdumpd] gave up waiting for: sleep 60", "124", "1", "0"]


def test_programs_run_in_order_and_those_that_hang_go_with_their_children(init: Supervisor) -> None:
    (init.folder / "children").mkdir()
    init.hooks(
        "pre",
        "echo first $1",
        "sleep 1000 & echo $! >children/1; sleep 1000 & echo $! >children/2; wait",
        "exit 3",
        "kill -9 $$",
        "echo last $1",
    )
    said = init.call('hooks pre argument; echo "worst $?"')
    assert said.index("first argument") < said.index("was ended after 2 s") < said.index("status 3")
    assert "status 137" in said
    assert "last argument" in said
    assert said.endswith("worst 137\n")
    children = [path.read_text().strip() for path in (init.folder / "children").iterdir()]
    assert len(children) == 2
    wait(lambda: not any(map(runs, children)), "the end of the children")


def test_no_programs_is_no_failure(init: Supervisor) -> None:
    assert init.call('hooks kdump_pre; echo "$?"') == "0\n"
    init.hooks("kdump_pre", "exit 5")
    assert init.call('hooks kdump_pre; echo "$?"').endswith("5\n")


def test_a_program_that_ends_with_124_did_not_hang(init: Supervisor) -> None:
    """The status that stands for a hang elsewhere; and a hang is no status."""
    init.hooks("kdump_pre", "exit 124")
    assert "ended with status 124" in init.call("hooks kdump_pre; echo $?")
    assert init.call("hooks kdump_pre").count("was ended") == 0
    assert init.call("hooks kdump_pre; echo $?").endswith("124\n")
    init.hooks("kdump_pre", "exec sleep 1000")
    said = init.call("hooks kdump_pre; echo $?")
    assert "was ended after 2 s" in said
    assert said.endswith("\n0\n")


def test_the_guard_ends_the_machine_though_the_console_takes_nothing(init: Supervisor) -> None:
    """PID 1 itself hangs in a write to the console; the guard must not."""
    (init.folder / "script").write_text(f"{init._text}\n{_HARMLESS}\nguard_machine 3 &\nwhile :; do echo x; done\n")
    with subprocess.Popen(["/bin/busybox", "sh", init.folder / "script"], stdout=subprocess.PIPE) as process:
        try:
            trigger = init.folder / "sysrq"
            wait(lambda: trigger.exists() and trigger.read_text() == "b\n", "the reboot")
            assert process.poll() is None
        finally:
            process.kill()


def test_a_watchdog_is_petted_at_a_quarter_of_its_time(init: Supervisor) -> None:
    dog = init.folder / "watchdog/watchdog0"
    dog.mkdir()
    (dog / "timeout").write_text("4\n")
    said = init.call("end_of_all=$(($(uptime) + 4)); pet watchdog0")
    assert "petting watchdog0 every 1 s" in said
    dots = (init.folder / "dev/watchdog0").read_text()
    assert 3 <= dots.count(".") <= 6
    assert "V" not in dots  # it goes on counting: should the reboot hang, it resets the machine
    (init.folder / "dev/watchdog0").unlink()
    (init.folder / "dev/watchdog0").mkdir()
    assert "watchdog0 cannot be petted" in init.call("pet watchdog0")


def test_a_note_is_a_manifest_that_nobody_else_reads(init: Supervisor) -> None:
    (init.conf / "note").write_text('{\n "format": 1,\n')
    init.settings("hostname vm\nlocal UUID=x ext4 rw /var/cr*sh\n")
    (init.folder / "crash").mkdir()
    script = f"""
        cd {init.folder}
        findfs() {{ echo /dev/vda; }}
        reason='no room'
        leave_note
    """
    said = init.call(script)
    (manifest,) = (init.run / "note/var/cr*sh").glob("vm-*/manifest.json")
    assert f"left a note in {manifest.parent}" in said
    found = json.loads(manifest.read_text())
    assert found["reason"] == "no room"
    assert found["finished_usec"] % 1_000_000 == 0
    for path in (manifest, manifest.parent / "kexec-dmesg.log"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(manifest.parent.stat().st_mode) == 0o700


def test_a_note_goes_to_the_next_disk_when_one_hangs_or_refuses(init: Supervisor) -> None:
    (init.conf / "note").write_text("{\n")
    init.settings("local /dev/a ext4 rw /a\nlocal /dev/b ext4 rw /b\nlocal /dev/c ext4 rw /c\n")
    said = init.call("""
        bounded() { shift; "$@"; }
        mount() { case $* in */dev/c*) ;; *) return 1 ;; esac; }
        leave_note
    """)
    assert "left a note in" in said
    assert list((init.run / "note/c").glob("unknown-*/manifest.json"))
    assert "no note could be left" in init.call("mount() { return 1; }; leave_note")
    (init.run / "answers/told").touch()
    assert init.call("leave_note") == ""


def test_a_note_goes_to_what_is_put_together_first(init: Supervisor) -> None:
    """With the tools of LVM and md, and to the device that they made: its tag may be on a member, too."""
    (init.conf / "note").write_text("{\n")
    init.settings(
        "layer md 1:2:3:4 /dev/md7\nlayer lvm LVM-gv a-b\nlocal UUID=x ext4 rw /a\n"
        "layer md 5:6:7:8 /dev/md8\nlocal LABEL=y ext4 rw /b\n"
    )
    (init.folder / "block/dm-0/dm").mkdir(parents=True)
    (init.folder / "block/dm-0/dm/uuid").write_text("CRYPT-x\n")
    said = init.call("""
        bounded() { shift; "$@"; }
        mdadm() { echo "mdadm $*"; case $* in *8*--no-degraded) return 1 ;; esac; }
        lvm() { echo "lvm $*"; mkdir -p block/dm-1/dm; echo LVM-gv >block/dm-1/dm/uuid; }
        mount() { echo "mount $*"; case $* in */dev/dm-1*) return 1 ;; esac; }
        cd "${conf%/*}"
        leave_note
    """)
    told = [line.split() for line in said.splitlines() if line.startswith(("mdadm", "lvm", "mount"))]
    assert [" ".join(line) for line in told if line[0] != "mount"] == [
        "mdadm --assemble /dev/md7 --uuid=1:2:3:4 --no-degraded",
        "lvm lvchange --activate y --sysinit --ignoreactivationskip --select lv_uuid=a-b",
        "mdadm --assemble /dev/md8 --uuid=5:6:7:8 --no-degraded",
        "mdadm --assemble /dev/md8 --uuid=5:6:7:8 --run",
    ]
    assert [line[-2] for line in told if line[0] == "mount"] == ["/dev/dm-1", "/dev/md8"]
    assert "left a note in" in said


@pytest.mark.parametrize(
    ("settings", "status", "expected"),
    [
        ("final_action halt\n", "succeed", "HALT"),
        ("final_action shell\n", "succeed", "REBOOT"),
        ("", "succeed", "REBOOT"),
        ("failure_action poweroff\n", "fail 1", "POWEROFF"),
        ("failure_action nonsense\n", "fail 1", "REBOOT"),
        ("failure_action shell\n", "fail 1", "REBOOT"),
    ],
)
def test_the_machine_ends(init: Supervisor, settings: str, status: str, expected: str) -> None:
    init.settings(settings)
    said = init.call(f"sleep() {{ [ $1 != 60 ] || exit; command sleep 0; }}; reason=none; ( {status} )")
    assert expected in said
    # Where the programs do nothing there is sysrq.
    trigger = init.folder / "sysrq"
    letters = {"REBOOT": "b\n", "POWEROFF": "o\n"}
    assert (trigger.read_text() if trigger.exists() else None) == letters.get(expected)
    assert ("a shell, for 1 s" in said) == (settings == "failure_action shell\n")


def test_a_shell_that_nobody_uses_ends(init: Supervisor) -> None:
    (init.folder / "console").unlink()
    subprocess.run(["mkfifo", init.folder / "console"], check=True)
    began = time.monotonic()
    # Its own end of the console stays open: nobody types, and nobody hangs up.
    said = init.call(f"exec 7<>{init.folder}/console; shell; echo over; kill -9 $!")
    assert 1 <= time.monotonic() - began < 60
    assert said.splitlines()[-1] == "over"
    assert (init.run / "shell").exists()
