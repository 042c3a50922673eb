# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose a block device is: the marks that filesystems, partition tables and volume managers leave on it.

In the capture kernel there is no blkid(8), and a raw target must not destroy what was put on its disk after the image
was built. Places and values are those of the on-disk headers (the kernel's fs/*, include/linux/*, md_p.h; lvm2,
cryptsetup and the UEFI specification, 5.3).
"""

from __future__ import annotations

from collections.abc import Callable

_PAGES = (4096, 8192, 16384, 65536)
# What it is, where, and the bytes there. Negative places count from the end.
_MARKS: tuple[tuple[str, int, bytes], ...] = (
    ("an ext2, ext3 or ext4 filesystem", 0x438, b"\x53\xef"),
    ("an XFS filesystem", 0, b"XFSB"),
    ("a btrfs filesystem", 0x10040, b"_BHRfS_M"),
    ("an F2FS filesystem", 0x400, b"\x10\x20\xf5\xf2"),
    ("an EROFS filesystem", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("an NTFS filesystem", 3, b"NTFS    "),
    ("an exFAT filesystem", 3, b"EXFAT   "),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("a squashfs filesystem", 0, b"hsqs"),
    ("a JFS filesystem", 0x8000, b"JFS1"),
    ("an ISO 9660 filesystem", 0x8001, b"CD001"),
    ("a UDF filesystem", 0x8001, b"BEA01"),
    ("a GFS2 filesystem", 0x10000, b"\x01\x16\x19\x70"),
    ("a bcache device or a bcachefs filesystem", 0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("a bcachefs filesystem", 0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9"),
    *(("a minix filesystem", 0x410, mark) for mark in (b"\x7f\x13", b"\x8f\x13", b"\x68\x24", b"\x78\x24")),
    ("a minix filesystem", 0x418, b"\x5a\x4d"),
    *(("an LVM physical volume", sector * 512, b"LABELONE") for sector in range(4)),
    *(("an encrypted volume (LUKS)", place, mark) for place, mark in (
        (0, b"LUKS\xba\xbe"), *((0x4000 << shift, b"SKUL\xba\xbe") for shift in range(3)),
    )),
    *(("swap space", page - 10, mark) for page in _PAGES for mark in (b"SWAPSPACE2", b"SWAP-SPACE")),
    *(("a hibernated system", page - 10, b"S1SUSPEND") for page in _PAGES),
    ("a member of an md array", 0, b"\xfc\x4e\x2b\xa9"),
    ("a member of an md array", 0x1000, b"\xfc\x4e\x2b\xa9"),
    ("a partition table (GPT)", 512, b"EFI PART"),
    ("a partition table (GPT)", 4096, b"EFI PART"),
    ("a partition table or a FAT filesystem", 510, b"\x55\xaa"),
    ("a partition table (GPT)", -512, b"EFI PART"),
    ("a partition table (GPT)", -4096, b"EFI PART"),
)  # fmt: skip
_MD = b"\xfc\x4e\x2b\xa9"
# ZFS: the array of uberblocks in the first label, one each KiB (module/zfs/vdev_label.c).
_ZFS_MAGIC = (b"\x0c\xb1\xba\x00\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00\xba\xb1\x0c")
_ZFS_FROM, _ZFS_TO = 128 << 10, 256 << 10

Read = Callable[[int, int], bytes]


def owner(read: Read, size_bytes: int, *, within: int | None = None) -> str | None:
    """What the device of `size_bytes` holds, with its article; None when nothing known is there.

    `read` takes offset and size. With `within` only marks in so many first bytes count.
    """
    for what, place, mark in (*_MARKS, *_md_at_the_end(size_bytes)):
        at = place if place >= 0 else size_bytes + place
        if within is not None and at + len(mark) > within:
            continue
        if 0 <= at <= size_bytes - len(mark) and read(at, len(mark)) == mark:
            return what
    if within is None and size_bytes >= _ZFS_TO:
        labels = read(_ZFS_FROM, _ZFS_TO - _ZFS_FROM)
        if any(labels[at : at + 8] in _ZFS_MAGIC for at in range(0, len(labels), 1024)):
            return "a ZFS device"
    return None


def _md_at_the_end(size_bytes: int) -> list[tuple[str, int, bytes]]:
    """Metadata 0.90 in the last whole 64 KiB, 1.0 at least 8 KiB before the end (include/uapi/linux/raid/md_p.h)."""
    places = ((size_bytes & ~0xFFFF) - 0x10000, (size_bytes // 512 - 16 & ~7) * 512)
    return [("a member of an md array", place, _MD) for place in places if place >= 0]
