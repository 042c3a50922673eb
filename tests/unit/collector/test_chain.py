# SPDX-License-Identifier: GPL-2.0-or-later
"""A chain of targets that hang, die or run out of time: what the collector does, and what it tells the supervisor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bus_bench import wait
from fake_kernel import OLD, FakeKernel

from kdumpd.collector import capture as capturing
from kdumpd.collector.capture import Places, capture
from kdumpd.collector.early import EarlyLog
from kdumpd.collector.kernel_messages import read_messages
from kdumpd.collector.supervised import Answers, Orders, parse_orders
from kdumpd.config.capture import CaptureConfig, Destination, LocalDestination
from kdumpd.config.layout import Layout
from kdumpd.config.model import DEFAULT_DUMP, Action, Deadlines
from kdumpd.crashes.index import Standing, read_crashes
from kdumpd.crashes.verify import verify
from kdumpd.dumpfile.manifest import Manifest, Result
from kdumpd.dumpfile.stored import Stored
from kdumpd.errors import DumpFormatError, TargetError
from kdumpd.targets import choose
from kdumpd.targets.files import CrashDirectory
from kdumpd.targets.target import Target

FIRST, SECOND, THIRD = (
    LocalDestination(device=f"LABEL={name}", fstype="ext4", directory="/crash") for name in ("a", "b", "c")
)


class Lab:
    """Targets that are folders; `before` is called as one is opened, `waiting` while."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.before: dict[Destination, Callable[[Callable[[], None]], None]] = {}
        self.opened: list[str] = []
        core = FakeKernel(OLD).write(root / "core")
        (root / "kmsg").write_bytes(b"6,1,1500000,-;ext4: mounted\n DEVICE=b8:1\n")
        settings = CaptureConfig(
            hostname="host", kernel="6.1", destinations=(FIRST, SECOND, THIRD), dump=DEFAULT_DUMP,
            final_action=Action.REBOOT, failure_action=Action.REBOOT, deadlines=Deadlines(total_sec=60),
        )  # fmt: skip
        (root / "capture.json").write_text(settings.to_json())
        self.places = Places(
            settings=root / "capture.json", image=root / "image.json", vmcore=core, mountpoint=root / "mnt",
            heartbeat=root / "alive", answers=root, kmsg=root / "kmsg",
        )  # fmt: skip
        monkeypatch.setattr(choose, "_plain", lambda destination, *_: self.target(destination))

    def change(self, **changes: object) -> None:
        settings = CaptureConfig.from_json(self.places.settings.read_text(), "settings")
        self.places.settings.write_text(dataclasses.replace(settings, **changes).to_json())  # type: ignore[arg-type]

    def target(self, destination: Destination) -> Target:
        lab = self

        class Folder(Target):
            name = "a folder"

            @contextlib.contextmanager
            def open_crash(self, name: str, alive: Callable[[], None]) -> Iterator[CrashDirectory]:
                lab.opened.append(lab.label(destination))
                lab.before.get(destination, lambda _: None)(alive)
                folder = lab.root / lab.label(destination)
                folder.mkdir(exist_ok=True)
                with CrashDirectory.create(folder, "crash", name) as directory:
                    yield directory

        return Folder()

    @staticmethod
    def label(destination: Destination) -> str:
        assert isinstance(destination, LocalDestination)
        return destination.device[-1]

    def crashes(self, label: str) -> list[Path]:
        return sorted((self.root / label / "crash").glob("*"))

    def manifest(self, path: Path) -> Manifest:
        return Manifest.from_json((path / "manifest.json").read_text(), "manifest")

    def told(self, name: str) -> str:
        return (self.root / name).read_text().rstrip("\n")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def test_the_supervisor_hears_where_the_dump_is(lab: Lab) -> None:
    assert capture(lab.places) == 0
    (crash,) = lab.crashes("a")
    assert (lab.told("target"), lab.told("result"), lab.told("name")) == ("1", "complete", str(FIRST))
    assert lab.told("path").endswith(crash.name)
    assert (crash / "kexec-dmesg.log").read_text() == "[    1.500000] ext4: mounted\n"
    assert lab.opened == ["a"]


def test_debians_layout_is_found_again(lab: Lab) -> None:
    lab.change(layout=Layout.DEBIAN)
    assert capture(lab.places) == 0
    (crash,) = lab.crashes("a")
    assert crash.name == "202311142213"
    assert {path.name for path in crash.iterdir()} == {
        "dump.202311142213", "manifest.json", "kexec-dmesg.log", "kexec_cmd",
        "kernel_link", "config_link", "system.map_link",
    }  # fmt: skip
    assert os.readlink(crash / "config_link") == "/boot/config-6.1"
    (found,) = read_crashes(crash.parent)
    assert (found.standing, found.dump) == (Standing.COMPLETE, crash / "dump.202311142213")
    assert verify(found) is None
    (crash / "manifest.json").unlink()
    assert not read_crashes(crash.parent)  # a dump alone may be anybody's


def test_debians_layout_without_room(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.change(layout=Layout.DEBIAN, destinations=(FIRST,))
    monkeypatch.setattr(capturing.Source, "log_lines", lambda _: ["one"])
    monkeypatch.setattr(capturing, "check_dump", fails)
    assert capture(lab.places) == 1
    (found,) = read_crashes(lab.root / "a/crash")
    assert found.standing is Standing.INCOMPLETE
    assert found.log == found.path / "dmesg.202311142213"
    assert (found.path / "dump-incomplete.202311142213").stat().st_size == found.dump_bytes
    (found.path / "manifest.json").unlink()
    (found,) = read_crashes(lab.root / "a/crash")
    assert found.standing is Standing.INTERRUPTED


def fails(stored: Stored, *_: object) -> None:
    stored.close()
    raise DumpFormatError("it does not read back")


def test_a_second_run_begins_behind_the_target_that_hung(lab: Lab) -> None:
    assert capture(lab.places, Orders(after=1, because="the collector was silent for 120 s")) == 0
    (crash,) = lab.crashes("b")
    assert lab.told("target") == "2"
    assert "an earlier run of the collector came to no end: the collector was silent for 120 s" in (
        lab.manifest(crash).notes
    )
    assert lab.opened == ["b"]


def test_with_no_target_left_the_reason_is_told(lab: Lab) -> None:
    assert capture(lab.places, Orders(after=3)) == 1
    assert lab.told("reason") == "no target is left to be tried"


def test_each_target_has_its_share_of_the_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits for as long as it is let; the next ones still have their time."""
    real, waited = time.monotonic, 0.0

    def waits(alive: Callable[[], None]) -> None:
        nonlocal waited
        while True:
            alive()
            waited += 0.5

    monkeypatch.setattr(time, "monotonic", lambda: real() + waited)
    monkeypatch.setattr(capturing, "_LAST_SEC", 0.0)
    lab.before[FIRST] = waits
    assert capture(lab.places, Orders(until_sec=int(time.monotonic()) + 3000)) == 0
    assert 800 < waited <= 1001  # a third, less what the real work took meanwhile
    (crash,) = lab.crashes("b")
    assert any("the time for this target is over" in note for note in lab.manifest(crash).notes)


@pytest.mark.parametrize(
    ("deadlines", "left", "share"),
    [(Deadlines(), 1, 85.0), (Deadlines(), 5, 17.0), (Deadlines(target_sec=30), 1, 30.0)],
)
def test_shares(deadlines: Deadlines, left: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing.time, "monotonic", lambda: 1000.0)
    assert capturing._until(deadlines, 1100, left) == 1000.0 + share
    assert capturing._until(deadlines, 900, left) == 1000.0
    assert capturing._until(deadlines, None, left) is None


def test_the_log_goes_to_the_next_target_while_the_first_one_hangs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing.Source, "log_lines", lambda _: ["one", "Kernel panic - not syncing: x"])
    monkeypatch.setattr(capturing, "EarlyLog", lambda others, save: EarlyLog(others, save, 0.05))

    def refuses(alive: Callable[[], None]) -> None:
        raise TargetError("no route to host")

    def slow(alive: Callable[[], None]) -> None:
        end = time.monotonic() + 20
        while not lab.crashes("c") or not (lab.crashes("c")[0] / "manifest.json").exists():
            assert time.monotonic() < end
            time.sleep(0.01)

    lab.before[FIRST], lab.before[SECOND] = slow, refuses
    assert capture(lab.places) == 0
    (early,), (late,) = lab.crashes("c"), lab.crashes("a")
    assert {path.name for path in early.iterdir()} == {"manifest.json", "vmcore-dmesg.txt"}
    manifest = lab.manifest(early)
    assert manifest.result is Result.LOG_ONLY
    assert str(manifest.reason).startswith(f"{FIRST} had not answered after")
    assert any("no route to host" in note for note in manifest.notes)
    assert lab.manifest(late).result is Result.COMPLETE
    assert lab.told("result") == "complete"


def test_one_that_hangs_does_not_keep_the_log_from_the_one_behind_it() -> None:
    """Each is begun a little later than the one before it, and none once the log is safe."""
    asked: list[Destination] = []
    go_on = threading.Event()

    def save(destination: Destination) -> bool:
        asked.append(destination)
        return destination is not SECOND or go_on.wait(60)

    early = EarlyLog([SECOND, THIRD, FIRST], save, 0.05, 1.0)
    wait(lambda: not early._threads[0].is_alive(), "the end of the thread that begins the others")
    assert asked == [SECOND, THIRD]
    assert early._threads[1].is_alive()
    go_on.set()
    early.settle(lambda: None)
    assert not any(thread.is_alive() for thread in early._threads)


def test_a_target_that_answers_keeps_the_log_to_itself(lab: Lab) -> None:
    saved = threading.Event()
    early = EarlyLog([SECOND], lambda _: bool(saved.set()), 600)
    early.not_needed()
    wait(lambda: not early._threads[0].is_alive(), "the end of the thread that waits")
    early.settle(lambda: None)
    assert not saved.is_set()


@pytest.mark.parametrize(
    ("words", "orders"),
    [
        ([], Orders()),
        (["--after", "2", "--until", "3600", "--because", "why"], Orders(after=2, until_sec=3600, because="why")),
        (["--after", "x", "--until"], Orders()),
        (["--after", "-1", "--color", "red"], Orders()),
    ],
)
def test_orders(words: list[str], orders: Orders) -> None:
    assert parse_orders(words) == orders


def test_an_answer_is_one_line_that_goes_into_json_as_it_is(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    answers.tell("reason", 'a "b" \\c\nd\x1b' + "x" * 1000)
    text = (tmp_path / "reason").read_text()
    assert text.startswith("a 'b' 'c'd'xxx")
    assert text.count("\n") == 1
    assert len(text) == 501
    Answers(tmp_path / "missing").tell("reason", "x")
    Answers(None).tell("reason", "x")


def test_the_kernels_own_messages() -> None:
    """Of this machine: nothing is longer than a line, and reading ends."""
    data = read_messages()
    assert len(data) <= (1 << 20) + 8192
    assert all(line.startswith(b"[") for line in data.splitlines())
