# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of crash folders and of the files in them, as users of other tools know them (kdump.conf(5): layout).

The manifest and what belongs to it are the same everywhere. Sources: kdump.sh of RHEL's kdump-utils for the folder
HOST-YYYY-MM-DD-HH:MM:SS; kdump-config(8) of Debian's kdump-tools for YYYYmmddHHMM, dump.STAMP and dmesg.STAMP.
"""

from __future__ import annotations

import datetime
import enum
import re
import shlex
from collections.abc import Mapping

_HARMLESS = re.compile(r"[^A-Za-z0-9._-]")


class Layout(enum.StrEnum):
    """Whose names they are."""

    KDUMPD = "kdumpd"
    RHEL = "rhel"
    DEBIAN = "debian"


# kdumpd's name: what other layouts may call it.
DUMP_NAMES = re.compile(r"dump\.[0-9]{12}")
INCOMPLETE_NAMES = re.compile(r"dump-incomplete\.[0-9]{12}")
LOG_NAMES = re.compile(r"dmesg\.[0-9]{12}")


def host_label(hostname: str) -> str:
    """The name of a host as a part of a file name: it is text from outside, only harmless characters are used."""
    return _HARMLESS.sub("_", hostname)[:64].lstrip(".-") or "unknown"


def folder_name(layout: Layout, hostname: str, when_sec: int) -> str:
    """The folder of a crash at `when_sec` since 1970, in UTC."""
    when = datetime.datetime.fromtimestamp(when_sec, datetime.UTC)
    if layout is Layout.DEBIAN:
        return when.strftime("%Y%m%d%H%M")
    form = "%Y-%m-%d-%H:%M:%S" if layout is Layout.RHEL else "%Y%m%dT%H%M%SZ"
    return f"{host_label(hostname)}-{when.strftime(form)}"


def file_names(layout: Layout, folder: str) -> Mapping[str, str]:
    """kdumpd's names of files that are called otherwise in a folder of this name."""
    if layout is not Layout.DEBIAN:
        return {}
    return {
        "vmcore": f"dump.{folder}",
        "vmcore.incomplete": f"dump-incomplete.{folder}",
        "vmcore-dmesg.txt": f"dmesg.{folder}",
    }


def links(layout: Layout, kernel: str) -> Mapping[str, str]:
    """Symbolic links in the folder, for whoever opens the dump: to files of the kernel that died."""
    if layout is not Layout.DEBIAN:
        return {}
    return {
        "kernel_link": f"/boot/vmlinuz-{kernel}",
        "config_link": f"/boot/config-{kernel}",
        "system.map_link": f"/boot/System.map-{kernel}",
    }


def kexec_command(kernel: str, command_line: str) -> str:
    """What would have loaded the same with kexec(8), for the file kexec_cmd."""
    image = f"/boot/vmlinuz-{kernel} --initrd=/var/lib/kdumpd/{kernel}/initrd"
    return f"kexec -p -s {image} --command-line={shlex.quote(command_line.strip())}\n"
