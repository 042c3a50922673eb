# SPDX-License-Identifier: GPL-2.0-or-later
"""Encrypted volumes (LUKS) in the capture kernel, with the key that the crashed kernel handed over: without cryptsetup,
a passphrase, and the memory that a key derivation takes.

The kernel puts the keys into root's keyring when asked (kernel/crash_dump_dm_crypt.c, `restore`); the mapping names the
key, which stays in the kernel (Documentation/admin-guide/device-mapper/dm-crypt.rst, ":<size>:<type>:<description>").
Of mappings only what make one is done here: three calls of include/uapi/linux/dm-ioctl.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from kdumpd.config.capture import Layer
from kdumpd.config.keyring import description, use_root_keys
from kdumpd.config.luks import HEADER_BYTES, Volume, read_volume, reader, uuid_of
from kdumpd.errors import KdumpError, TargetError, os_reason
from kdumpd.targets.layers import mapped_uuid
from kdumpd.targets.local import run_tool

KEYS = Path("/sys/kernel/config/crash_dm_crypt_keys")
_CONTROL = "/dev/mapper/control"
_SYSFS = Path("/sys/class/block")
_DEV = Path("/dev")
_SECTOR = 512
# What is itself made of others; a member of a mirror may look like the whole, so these are never looked at.
_MADE = ("dm-", "md", "loop", "ram", "zram", "sr", "fd")

# struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid,
# data (the padding to a multiple of 8). struct dm_target_spec: sector_start, length, status, next, target_type.
_IOCTL = struct.Struct("=3I2IIiIIIQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")
_VERSION = (4, 0, 0)
_DEV_CREATE, _DEV_REMOVE, _DEV_SUSPEND, _TABLE_LOAD = 3, 4, 6, 9
_REQUEST = 3 << 30 | _IOCTL.size << 16 | 0xFD << 8  # _IOWR(DM_IOCTL, n, struct dm_ioctl)

_HINTS = {
    errno.ENOKEY: "the crashed kernel handed no such key over; on the running system: kdumpctl status",
    errno.ENOENT: "this kernel lacks the cipher; on the running system: kdumpctl rebuild",
    errno.EINVAL: "dm-crypt refused the table; the kernel's log says why",
}


def bring_up(layer: Layer, below: Path | None) -> str:
    """Makes the mapping of `layer`, which lies on the device `below`, or on a disk that is to be found when that is
    None. Returns why there is none, or an empty text; the caller looks for its node, and tries again."""
    try:
        device = find(layer.ident) if below is None else below
        with device.open("rb", buffering=0) as file:
            volume = read_volume(reader(file.fileno()), layer.ident)
            number, size = os.fstat(file.fileno()).st_rdev, file.seek(0, os.SEEK_END)
        restore_keys()
        _map(layer.ident, table(volume, layer.ident, number, size))
    except KdumpError as error:
        return error.sentence
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        return f"{os_reason(error)}{f' ({hint})' if hint else ''}"
    return ""


def find(uuid: str) -> Path:
    """The disk or partition that begins with the LUKS header of `uuid`. Raises TargetError unless there is one."""
    found = []
    for name in sorted(os.listdir(_SYSFS)):
        if name.startswith(_MADE):
            continue
        try:
            if any((_SYSFS / name / "holders").iterdir()):
                continue  # a member of something
            with (_DEV / name).open("rb", buffering=0) as file:
                if uuid_of(file.read(HEADER_BYTES)) == uuid:
                    found.append(_DEV / name)
        except OSError:
            continue  # no medium, or it is gone again
    if len(found) > 1:
        raise TargetError(f"{' and '.join(map(str, found))} both say that they are the encrypted volume {uuid}")
    if not found:
        raise TargetError(f"no disk has a LUKS header of {uuid}")
    return found[0]


def restore_keys() -> None:
    """Has the kernel put the keys that the crashed one handed over into root's keyring. Raises TargetError, OSError."""
    if not KEYS.is_dir():
        _mount_configfs(KEYS.parent)
    if not KEYS.is_dir():
        raise TargetError("this kernel takes no keys over (it is not built with CONFIG_CRASH_DM_CRYPT)")
    use_root_keys()
    restore = KEYS / "restore"
    # Once is enough, and each further time adds the same keys.
    if restore.read_text().strip() in ("", "0"):
        restore.write_text("1\n")


def _mount_configfs(where: Path) -> None:
    if where.is_dir() and not os.path.ismount(where):
        run_tool(["mount", "-t", "configfs", "configfs", str(where)])


def table(volume: Volume, uuid: str, number: int, size_bytes: int) -> tuple[int, str]:
    """The sectors of the mapping on the device `number` of `size_bytes`, and the parameters of its target.

    Raises TargetError when the device is too small.
    """
    there = size_bytes - volume.offset_bytes
    length = there if volume.size_bytes is None else volume.size_bytes
    length -= length % volume.sector_bytes
    if length <= 0 or length > there:
        raise TargetError(f"the device of the encrypted volume {uuid} is smaller than its header says")
    words = [
        volume.cipher,
        f":{volume.key_bytes}:user:{description(uuid)}",  # as the kernel restores them, whatever they were before
        str(volume.iv_sectors),
        f"{os.major(number)}:{os.minor(number)}",
        str(volume.offset_bytes // _SECTOR),
    ]
    if volume.sector_bytes != _SECTOR:
        words += ["1", f"sector_size:{volume.sector_bytes}"]
    return length // _SECTOR, " ".join(words)


def _map(uuid: str, wanted: tuple[int, str]) -> None:
    """Creates the device, loads its table, lets it run. Leaves nothing behind when that fails. Raises OSError."""
    sectors, parameters = wanted
    name = f"kdumpd-{uuid}"
    text = parameters.encode() + b"\0"
    text += bytes(-len(text) % 8)
    target = _TARGET.pack(0, sectors, 0, _TARGET.size + len(text), b"crypt") + text
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            _ask(control, _DEV_CREATE, name, uuid=mapped_uuid(uuid))
        except OSError as error:
            if error.errno != errno.EBUSY:  # one without a table: a collector was killed here
                raise
        try:
            _ask(control, _TABLE_LOAD, name, data=target, targets=1)
            _ask(control, _DEV_SUSPEND, name)  # without its flag: resume
        except OSError:
            _ask(control, _DEV_REMOVE, name)
            raise
    finally:
        os.close(control)


def _ask(control: int, command: int, name: str, *, uuid: str = "", data: bytes = b"", targets: int = 0) -> None:
    size = _IOCTL.size + len(data)
    head = _IOCTL.pack(*_VERSION, size, _IOCTL.size, targets, 0, 0, 0, 0, 0, name.encode(), uuid.encode())
    fcntl.ioctl(control, _REQUEST | command, bytearray(head + data), True)
