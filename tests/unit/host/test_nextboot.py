# SPDX-License-Identifier: GPL-2.0-or-later
"""crashkernel= of the next boot, as the files of boot loaders tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumpd.host.nextboot import NextBoot, parse_grub, parse_grubenv, read_next_boot

RUNNING = "BOOT_IMAGE=/vmlinuz-6.1 root=UUID=aa ro crashkernel=256M"
GRUB = """
set default="0"
menuentry 'Debian' {
\tsearch --no-floppy --fs-uuid --set=root aa
\tlinux\t/boot/vmlinuz-6.1 root=UUID=aa ro quiet crashkernel=512M-:192M
\tinitrd /boot/initrd.img-6.1
}
menuentry 'Debian, recovery' {
\tlinux /boot/vmlinuz-6.1 root=UUID=aa ro single
}
menuentry 'memtest' { linux16 /boot/memtest86+.bin console=ttyS0 }
menuentry 'another system' {
\tlinux /vmlinuz root=/dev/sdb1 ro
}
"""


def _write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_grub_entries_for_rescue_and_other_systems_do_not_count(tmp_path: Path) -> None:
    _write(tmp_path, "boot/grub/grub.cfg", GRUB)
    assert read_next_boot(tmp_path, RUNNING) == NextBoot(files=("/boot/grub/grub.cfg",), crashkernels=("512M-:192M",))
    assert len(list(parse_grub(GRUB))) == 3


def test_entries_that_differ_are_all_named(tmp_path: Path) -> None:
    _write(
        tmp_path, "boot/grub/grub.cfg", "linux /vmlinuz-a root=UUID=aa crashkernel=1G\nlinux /vmlinuz-b root=UUID=aa\n"
    )
    assert read_next_boot(tmp_path, RUNNING).crashkernels == ("1G", "")


def test_boot_loader_specification_entries_with_variables(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "boot/grub2/grubenv",
        "# GRUB Environment Block\nkernelopts=root=UUID=aa crashkernel=1G,high\nsaved=x\n###",
    )
    _write(
        tmp_path,
        "boot/loader/entries/a.conf",
        "title A\nversion 6.1\nlinux /vmlinuz\noptions $kernelopts $tuned_params\n",
    )
    _write(tmp_path, "boot/loader/entries/b.conf", "version 0-rescue-1\nlinux /v\noptions root=UUID=aa\n")
    _write(tmp_path, "efi/loader/entries/c.conf", "linux /v\noptions root=UUID=aa\noptions crashkernel=1G,high\n")
    _write(tmp_path, "efi/loader/entries/shell.conf", "title Shell\nefi /shellx64.efi\n")
    found = read_next_boot(tmp_path, RUNNING)
    assert found.crashkernels == ("1G,high",)
    assert found.files == ("/boot/loader/entries/a.conf", "/efi/loader/entries/c.conf")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("boot/extlinux/extlinux.conf", "LABEL l0\n\tKERNEL /vmlinuz\n\tAPPEND root=UUID=aa crashkernel=300M\n"),
        ("boot/firmware/cmdline.txt", "console=tty1 root=UUID=aa crashkernel=300M\n"),
        ("etc/kernel/cmdline", "root=UUID=aa crashkernel=300M\n"),
    ],
)
def test_other_files_with_a_command_line(tmp_path: Path, path: str, text: str) -> None:
    _write(tmp_path, path, text)
    assert read_next_boot(tmp_path, RUNNING) == NextBoot(files=("/" + path,), crashkernels=("300M",))


def test_a_loaders_entries_count_more_than_what_they_are_made_of(tmp_path: Path) -> None:
    _write(tmp_path, "etc/kernel/cmdline", "root=UUID=aa\n")
    _write(tmp_path, "boot/loader/entries/a.conf", "linux /v\noptions root=UUID=aa crashkernel=1G\n")
    assert read_next_boot(tmp_path, RUNNING).crashkernels == ("1G",)


def test_nothing_is_known_without_files_and_with_hostile_ones(tmp_path: Path) -> None:
    assert read_next_boot(tmp_path, RUNNING) == NextBoot()
    (tmp_path / "boot/grub").mkdir(parents=True)
    (tmp_path / "boot/grub/grub.cfg").write_bytes(b'\xff\x00linux\n\tlinux\nlinux "\n' * 50)
    read_next_boot(tmp_path, RUNNING)
    assert parse_grubenv("=\n#a=b\nx") == {"": ""}
