# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes sent one after the other arrive in their order, or a sentence says where they stopped."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from kdumpd.errors import NoSpaceError, TargetError
from kdumpd.targets.stream import OutputStream


def test_a_pipe_that_takes_little_at_a_time_gets_everything() -> None:
    reader, writer = os.pipe()
    parts = [b"", b"head", bytes(300_000), memoryview(b"tail" * 5000), *[b"x"] * 3000]
    got = bytearray()

    def drain() -> None:
        while data := os.read(reader, 1000):
            got.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    stream = OutputStream(writer, "pipe")
    stream.send(*parts)
    stream.sync()
    os.close(writer)
    thread.join()
    os.close(reader)
    assert got == b"".join(parts)
    assert stream.sent == len(got)


def test_a_reader_that_left_is_one_sentence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(TargetError, match=r"^standard output cannot be written after 0 bytes: nobody reads it"):
        OutputStream(writer, "standard output").send(b"x")
    os.close(writer)


def test_a_full_device_is_no_space() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(NoSpaceError, match="No space left"):
        OutputStream(fd, "/dev/full").send(b"x")
    os.close(fd)


def test_a_file_is_synced(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT, 0o600)
    stream = OutputStream(fd, "out")
    stream.send(b"data")
    stream.sync()
    os.close(fd)
    assert (tmp_path / "out").read_bytes() == b"data"
