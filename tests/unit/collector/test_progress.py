# SPDX-License-Identifier: GPL-2.0-or-later
"""One line that redraws on a terminal, at most a line a second on a console, and what is said of memory."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pytest

from kdumpd.collector import progress as progressing
from kdumpd.collector.dump import summary
from kdumpd.collector.progress import Progress, available_memory, size_text
from kdumpd.errors import TargetError

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progressing.time, "monotonic", lambda: now[0])
    return now


def run(progress: Progress, clock: list[float], steps: int, seconds: float) -> None:
    progress.phase("before")
    progress.step(1000, 3000, 1000 * 4096, MIB)
    progress.phase("writing the rest")
    for number in range(1, steps + 1):
        clock[0] += seconds / steps
        progress.step(1000 + number * 1000 // steps, 3000, (1000 + number * 1000 // steps) * 4096, 2 * MIB)


def test_a_console_gets_a_line_a_second(clock: list[float], tmp_path: Path) -> None:
    stream = Terminal()  # a serial console says that it is a terminal, too
    run(Progress(2, stream=stream, heartbeat=tmp_path / "alive"), clock, 500, 5.0)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["[kdumpd] 1/2 before", "[kdumpd] 2/2 writing the rest"]
    assert 4 <= len(lines) - 2 <= 5
    assert "\x1b" not in stream.getvalue()
    # 1000 pages of this phase in 5 s, 1000 are left.
    assert re.fullmatch(r"\[kdumpd\] 2/2 writing the rest  \d+ %  1 MiB/s  ETA 0:0\d  7\.\dM -> 2\.0M", lines[-1])
    assert (tmp_path / "alive").exists()


def test_a_terminal_gets_one_line(clock: list[float]) -> None:
    stream = Terminal()
    progress = Progress(2, stream=stream)
    run(progress, clock, 500, 5.0)
    progress.say("SAVED")
    text = stream.getvalue()
    assert text.count("\n") == 3
    assert 20 <= text.count("\r[kdumpd] 2/2") <= 26
    assert text.endswith("\r\x1b[K[kdumpd] SAVED\n")


def test_another_target_begins_with_nothing_saved(clock: list[float]) -> None:
    stream = Terminal()
    progress = Progress(2, stream=stream)
    run(progress, clock, 5, 5.0)
    progress.begin_again(1)
    progress.phase("writing elsewhere")
    clock[0] += 1
    progress.step(256, 512, MIB, MIB)
    assert "2/2 writing elsewhere  50 %  1 MiB/s  ETA 0:01  1.0M -> 1.0M" in stream.getvalue()


def test_the_end_of_the_time_is_told_to_every_thread_that_waits(clock: list[float]) -> None:
    progress = Progress(1, stream=io.StringIO())
    found: list[str] = []

    def waits() -> None:
        try:
            progress.alive()
        except TargetError as error:
            found.append(error.sentence)

    with progress.limited(105.0, "late"):
        for _ in range(2):
            thread = threading.Thread(target=waits)
            thread.start()
            thread.join()
            clock[0] += 6
        progress.say("a line is no reason to end")
    waits()
    assert found == ["late"]


def test_the_least_available_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([500, 300, 400])
    monkeypatch.setattr(progressing, "available_memory", lambda: next(found))
    progress = Progress(1, stream=io.StringIO())
    for _ in range(3):
        progress.alive()
    assert progress.lowest_available == 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:  12 kB\n", 12288),
        ("MemAvailable: x kB\n", None),
        ("MemAvailable:\n", None),
        ("", None),
    ],
)
def test_meminfo_is_read_with_care(text: str, expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert available_memory(tmp_path / "meminfo") == expected
    assert available_memory(tmp_path / "none") is None


def test_the_last_line_says_what_was_left_out() -> None:
    pages = {"total": 1000, "kept": 200, "zero": 5, "free": 512, "user": 256, "cache": 0}
    assert summary(3 * MIB, pages, 1.25) == (
        "3.0M in 1.2 s, 200 of 1000 pages kept (5 of them zero), left out: 2.0M free, 1.0M user data"
    )
    assert summary(0, {}, 0).endswith("left out: nothing")
    assert size_text(1 << 40) == "1.0T"
