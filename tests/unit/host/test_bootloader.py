# SPDX-License-Identifier: GPL-2.0-or-later
"""crashkernel= of the next boot: the right file changes, a person's own value stays and is named, failures undo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kdumpd.errors import KdumpError, UnsupportedError, UsageError
from kdumpd.host import bootloader
from kdumpd.host.bootloader import Loader, apply_change, check_values, plan_change, read_settings

OURS = "etc/default/grub.d/kdumpd.cfg"
GRUBBY = """index=0
kernel="/boot/vmlinuz-6.12.0"
args="ro quiet crashkernel=1G-:192M"
root="UUID=1"
index=1
kernel="/boot/vmlinuz-6.11.0"
args="ro"
"""


def put(root: Path, path: str, text: str = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


class Commands:
    """Notes what would be run."""

    def __init__(self, answer: str = "", fail: bool = False) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.answer, self.fail = answer, fail

    def __call__(self, words: Sequence[str]) -> str:
        self.seen.append(tuple(words))
        if self.fail:
            raise KdumpError("update-grub failed with status 1: no space")
        return self.answer


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    put(tmp_path, "usr/sbin/update-grub")
    put(tmp_path, "etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="crashkernel=128M"\n')
    return tmp_path


def test_grub_gets_a_drop_in_and_the_own_value_stays(debian: Path) -> None:
    before = (debian / "etc/default/grub").read_bytes()
    change = plan_change(["256M"], debian)
    assert change.loader is Loader.GRUB
    assert [str(setting) for setting in change.kept] == ["/etc/default/grub:2: crashkernel=128M"]
    assert '+GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT crashkernel=256M"' in change.diff()
    assert not (debian / OURS).exists()
    run = Commands()
    apply_change(change, debian, run)
    assert run.seen == [("update-grub",)]
    assert (debian / "etc/default/grub").read_bytes() == before
    assert (debian / OURS).stat().st_mode & 0o777 == 0o644
    assert [setting.value for setting in read_settings(debian)] == ["128M", "256M"]
    assert plan_change(["256M"], debian).edits == ()


def test_a_failing_command_leaves_the_files_as_they_were(debian: Path) -> None:
    with pytest.raises(KdumpError, match="as they were"):
        apply_change(plan_change(["256M"], debian), debian, Commands(fail=True))
    assert not (debian / OURS).exists()
    apply_change(plan_change(["256M"], debian), debian, Commands())
    old = (debian / OURS).read_text()
    with pytest.raises(KdumpError):
        apply_change(plan_change(["512M"], debian), debian, Commands(fail=True))
    assert (debian / OURS).read_text() == old


def test_a_drop_in_that_is_read_after_ours_is_not_fought(debian: Path) -> None:
    put(debian, "etc/default/grub.d/zz.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="crashkernel=1M"\n')
    with pytest.raises(UnsupportedError, match=r"zz\.cfg:1"):
        plan_change(["256M"], debian)


def test_a_plain_value_of_somebody_else_would_make_high_void(debian: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"grub:2: crashkernel=128M stands there"):
        plan_change(["512M,high"], debian)


def test_a_file_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    put(tmp_path, "usr/bin/kernel-install")
    put(tmp_path, "etc/kernel/cmdline").write_bytes(b"root=LABEL=\xff ro\n")
    with pytest.raises(KdumpError, match="not UTF-8"):
        plan_change(["256M"], tmp_path)


def test_kernel_install(tmp_path: Path) -> None:
    put(tmp_path, "usr/bin/kernel-install")
    put(tmp_path, "etc/kernel/cmdline", "root=UUID=1 crashkernel=128M ro\n")
    put(tmp_path, "usr/lib/modules/6.1.0/vmlinuz")
    put(tmp_path, "usr/lib/modules/6.1.0/modules.dep")
    change = plan_change(["512M,high", "128M,low"], tmp_path)
    assert change.loader is Loader.KERNEL_INSTALL
    assert "-root=UUID=1 crashkernel=128M ro" in change.diff()
    run = Commands()
    apply_change(change, tmp_path, run)
    assert run.seen == [("kernel-install", "add", "6.1.0", "/usr/lib/modules/6.1.0/vmlinuz")]
    words = (tmp_path / "etc/kernel/cmdline").read_text()
    assert words == "root=UUID=1 ro crashkernel=512M,high crashkernel=128M,low\n"


def test_grubby(tmp_path: Path) -> None:
    put(tmp_path, "usr/sbin/grubby")
    run = Commands(GRUBBY)
    change = plan_change(["256M"], tmp_path, run)
    assert change.loader is Loader.GRUBBY
    assert "-crashkernel=1G-:192M" in change.diff()
    assert change.diff().count("+crashkernel=256M") == 2
    apply_change(change, tmp_path, run)
    words = ("grubby", "--update-kernel=ALL", "--remove-args=crashkernel", "--args=crashkernel=256M")
    assert run.seen[-1] == words
    assert not (tmp_path / "boot").exists()


def test_unknown_boot_loaders_are_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="does not know this machine's boot loader"):
        plan_change(["256M"], tmp_path)
    put(tmp_path, "run/ostree-booted")
    with pytest.raises(UnsupportedError, match="ostree"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "values", [["x"], ["1G-"], ["256M,low"], ["256M,cma"], ["256M", "128M"], ["$(x)"], ["256M ro"]]
)
def test_values_that_no_kernel_takes(values: list[str]) -> None:
    with pytest.raises(UsageError):
        check_values(values)


def test_cma_goes_first_for_kernels_that_do_not_know_it() -> None:
    assert check_values(["crashkernel=256M", "1G,cma"]) == ("1G,cma", "256M")


def test_a_real_command_that_fails_says_how() -> None:
    run = bootloader._runner(Path("/"))
    with pytest.raises(KdumpError, match=r"status 2: .*nonexistent"):
        run(["ls", "/nonexistent"])
    with pytest.raises(KdumpError, match="cannot be run"):
        run(["/nonexistent/program"])
