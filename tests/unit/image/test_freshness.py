# SPDX-License-Identifier: GPL-2.0-or-later
"""Why an image is stale, and that asking is quick."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdumpd.config.capture import LocalDestination
from kdumpd.config.model import DEFAULT_DUMP, Action
from kdumpd.image.freshness import freshness

if TYPE_CHECKING:
    from kdumpd.image import BuildRequest, ImageRecord

Built = tuple["BuildRequest", "ImageRecord"]


def _ask(request: BuildRequest, record: ImageRecord) -> tuple[str, ...]:
    return freshness(record, request.capture, request.kernel, request.targets, request.root)


def test_a_new_image_is_fresh_and_asking_is_quick(built: Built) -> None:
    took = []
    for _ in range(5):
        start = time.process_time()
        assert _ask(*built) == ()
        took.append(time.process_time() - start)
        if took[-1] < 0.3:
            break
    assert min(took) < 0.3, took


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dump": dataclasses.replace(DEFAULT_DUMP, levels=(1, 31))}, "levels changed from 31 to 1,31"),
        (
            {"destinations": (LocalDestination(device="UUID=2", fstype="xfs", directory="/x"),)},
            "destinations changed from /crash on UUID=1111-aaaa (xfs) to /x on UUID=2 (xfs)",
        ),
        ({"final_action": Action.HALT}, "final action changed from reboot to halt"),
        ({"hostname": "db2"}, "hostname changed from db1 to db2"),
    ],
)
def test_a_changed_setting_is_told(built: Built, change: dict[str, object], words: str) -> None:
    request, record = built
    capture = dataclasses.replace(request.capture, **change)  # type: ignore[arg-type]
    assert freshness(record, capture, request.kernel, (), request.root) == (words,)


def test_another_kernel_is_told(built: Built) -> None:
    request, record = built
    kernel = dataclasses.replace(request.kernel, release="6.12")
    assert freshness(record, request.capture, kernel) == ("the image was built for kernel 6.1.0-test, wanted is 6.12",)


def test_a_kernel_image_that_was_replaced_is_told(built: Built, tmp_path: Path) -> None:
    request, record = built
    other = tmp_path / "vmlinuz"
    other.write_bytes(b"other")
    kernel = dataclasses.replace(request.kernel, image=other)
    assert freshness(record, request.capture, kernel) == (f"the kernel image {other} changed",)


def _with_source_copied(record: ImageRecord, tmp_path: Path) -> tuple[ImageRecord, Path]:
    """The record as if one of its sources were a file of the test's own."""
    index = next(i for i, entry in enumerate(record.files) if entry.path.endswith("xfs.ko"))
    source = record.files[index].source
    assert source is not None
    copy = tmp_path / "xfs.ko"
    shutil.copyfile(source.path, copy)
    status = copy.stat()
    moved = dataclasses.replace(source, path=str(copy), mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)
    files = list(record.files)
    files[index] = dataclasses.replace(files[index], source=moved)
    return dataclasses.replace(record, files=tuple(files)), copy


def test_touching_a_file_does_not_make_the_image_stale(built: Built, tmp_path: Path) -> None:
    request, record = built
    record, copy = _with_source_copied(record, tmp_path)
    os.utime(copy, (1, 1))
    assert _ask(request, record) == ()


def test_other_content_does_even_with_equal_size_and_time(built: Built, tmp_path: Path) -> None:
    request, record = built
    record, copy = _with_source_copied(record, tmp_path)
    status = copy.stat()
    data = bytearray(copy.read_bytes())
    data[100] ^= 1
    time.sleep(0.02)  # a clock tick, so that the time of change moves
    copy.write_bytes(data)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert _ask(request, record) == (f"files in the image changed on the host: {copy}",)


def test_a_file_that_is_gone_is_told(built: Built, tmp_path: Path) -> None:
    request, record = built
    record, copy = _with_source_copied(record, tmp_path)
    copy.unlink()
    assert _ask(request, record) == (f"files in the image changed on the host: {copy}",)


def test_another_kdumpd_is_told(built: Built) -> None:
    request, record = built
    (reason,) = _ask(request, dataclasses.replace(record, kdumpd_version="0.0.1"))
    assert reason.startswith("the image was built by kdumpd 0.0.1")


def test_a_room_that_got_a_new_file_is_told(built: Built) -> None:
    request, record = built
    files = tuple(entry for entry in record.files if not entry.path.endswith("kdumpd/errors.pyc"))
    assert _ask(request, dataclasses.replace(record, files=files)) == (
        "the image holds another installation of kdumpd than this one",
    )


def test_a_target_that_needs_other_modules_is_told(built: Built) -> None:
    request, record = built
    block = next(path.name for path in sorted(Path("/sys/class/block").iterdir()) if path.name.startswith("loop"))
    targets = (dataclasses.replace(request.targets[0], block=block),)
    fresh = freshness(record, request.capture, request.kernel, targets, Path("/"))
    assert fresh == ()
    stale = dataclasses.replace(record, modules=("/kdumpd/modules/x/kernel/fs/ext4/ext4.ko",))
    (reason,) = freshness(stale, request.capture, request.kernel, targets, Path("/"))
    assert reason == "the target needs the modules libcrc32c xfs now"
