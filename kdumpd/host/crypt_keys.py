# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the key of an encrypted volume can be handed over to the capture kernel, and handing it over.

Linux 6.16 and later with CONFIG_CRASH_DM_CRYPT (kernel/crash_dump_dm_crypt.c): each folder in CRASH_KEYS names a logon
key of the first kernel's keyring. kexec_file_load(2) copies these keys inside the kernel, into reserved memory, and
tells the capture kernel where (dmcryptkeys=). No key passes through a process. Nothing here asks for a version: what
counts is the folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdumpd.config.keyring import description
from kdumpd.errors import LoadError, TargetError, TargetLockedError, os_reason
from kdumpd.host.files import below, read_int, read_text

if TYPE_CHECKING:
    from kdumpd.config import luks
    from kdumpd.config.capture import Layer

CONFIGFS = "/sys/kernel/config"
CRASH_KEYS = f"{CONFIGFS}/crash_dm_crypt_keys"
# Folders of others stay as they are.
_OURS = "kdumpd-"
# CRYPT_DEVICE's UUID in the device mapper, as libcryptsetup writes it: the volume's without dashes, then its name.
_MAPPED = re.compile(r"CRYPT-LUKS[12]-([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})-.*", re.S)
_OTHER_TARGET = "or name another target in /etc/kdump.conf"
# /proc/keys, proc_keys_show in security/keys/proc.c: I is instantiated; R revoked, D dead, N negative, i invalidated.
_GOOD, _BAD = "I", frozenset("RDNi")
_KEY_COLUMNS = 9

HasKey = Callable[[str], bool]


def luks_uuid(mapped: str) -> str | None:
    """The UUID of the LUKS volume whose mapping has the UUID `mapped`; None for any other kind of encryption."""
    found = _MAPPED.fullmatch(mapped)
    return None if found is None else "-".join(found.groups())


def require_key(uuid: str, where: str, root: Path = Path("/")) -> None:
    """Raises TargetLockedError, its sentence begun with `where`, unless this kernel would hand over the key of the LUKS
    volume `uuid`."""
    if not below(root, CRASH_KEYS).is_dir():
        if below(root, CONFIGFS).is_dir() and f" {CONFIGFS} " not in (read_text(root, "/proc/self/mountinfo") or ""):
            raise TargetLockedError(
                f"{where} an encrypted volume, and whether this kernel can hand its key over to a capture kernel is not"
                f" seen, as configfs is not mounted on {CONFIGFS}",
                hint=f"systemctl start sys-kernel-config.mount, {_OTHER_TARGET}",
            )
        raise TargetLockedError(
            f"{where} an encrypted volume, whose key this kernel cannot hand over to a capture kernel: it has no"
            f" {CRASH_KEYS}",
            hint=f"run a kernel from 6.16 on that is built with CONFIG_CRASH_DM_CRYPT=y, {_OTHER_TARGET}",
        )
    wanted = description(uuid)
    if wanted not in parse_keys(read_text(root, "/proc/keys") or ""):
        raise TargetLockedError(
            f"{where} an encrypted volume, whose key is not in root's keyring (no logon key {wanted}), so that the"
            " capture kernel would not have it",
            hint=f"in /etc/crypttab: link-volume-key=@u::%logon:{wanted}, then boot; or at once: {link_command(uuid)}",
        )


def keys_of(layers: Iterable[Layer]) -> tuple[str, ...]:
    """The descriptions of the keys that `layers` need, each once."""
    from kdumpd.config.capture import LayerKind  # the loader has no layers, and starts without all that this brings

    return tuple(dict.fromkeys(description(layer.ident) for layer in layers if layer.kind is LayerKind.CRYPT))


def link_command(uuid: str) -> str:
    """What puts the key into root's keyring without a boot (cryptsetup 2.8 and later)."""
    words = f'--link-vk-to-keyring "@u::%logon:{description(uuid)}"'
    return f"cryptsetup open --test-passphrase {words} /dev/disk/by-uuid/{uuid}"


def parse_keys(text: str) -> list[str]:
    """The descriptions of the good logon keys of root's in the text of /proc/keys, in order."""
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=_KEY_COLUMNS - 1)
        if len(fields) < _KEY_COLUMNS:
            continue
        _, flags, _, timeout, _, user, _, kind, what = fields
        good = flags.startswith(_GOOD) and not _BAD & set(flags) and timeout != "expd"
        if good and (kind, user) == ("logon", "0"):
            # user_describe in security/keys/user_defined.c: the description, a colon, the number of bytes.
            found.append(what.rpartition(": ")[0])
    return sorted(found)


def read_keys(root: Path = Path("/")) -> str | None:
    """What a change of the keys shows in; None where the kernel hands none over."""
    if not below(root, CRASH_KEYS).is_dir():
        return None
    return " ".join(parse_keys(read_text(root, "/proc/keys") or ""))


def read_volume(uuid: str, device: str, root: Path = Path("/")) -> luks.Volume:
    """What the LUKS header on the block device `device` (a name as in /sys/class/block) says. Raises TargetError or
    UnsupportedError when the capture kernel could not make a mapping from it."""
    from kdumpd.config import luks  # nor this

    path = root / "dev" / device
    try:
        with path.open("rb", buffering=0) as file:
            return luks.read_volume(luks.reader(file.fileno()), uuid)
    except OSError as error:
        raise TargetError(
            f"the LUKS header on /dev/{device} cannot be read: {os_reason(error)}",
            hint="cryptsetup luksDump shows whether the disk is well",
        ) from error


def is_in_use(root: Path = Path("/")) -> bool:
    """Whether keys are named for the next load: it fails in a process that does not find them."""
    return any(_folders(below(root, CRASH_KEYS)))


def name_keys(wanted: Sequence[str], has_key: HasKey, root: Path = Path("/")) -> None:
    """Has the next load take the keys described `wanted` along, and none that an earlier call named.

    `has_key` says whether a description is one of a key in the keyring. Raises LoadError, and then the capture kernel
    in place is untouched.
    """
    folder = below(root, CRASH_KEYS)
    if not wanted and not folder.is_dir():
        return
    if not folder.is_dir():
        raise LoadError(
            f"This kernel cannot hand the key of the encrypted target to a capture kernel: there is no {CRASH_KEYS}",
            hint="run a kernel that is built with CONFIG_CRASH_DM_CRYPT=y, or mount configfs",
        )
    for each in wanted:
        if not has_key(each):
            raise LoadError(
                f"The key of the encrypted target, {each}, is not in root's keyring", hint="kdumpctl status"
            )
    names = {_OURS + each.replace("/", "-").replace(":", "-"): each for each in wanted}
    try:
        for old in _folders(folder):
            if old.name.startswith(_OURS) and old.name not in names:
                old.rmdir()
        for name, each in names.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "description").write_text(each + "\n")
        # Else the load takes what an earlier one left in reserved memory, whatever is named now.
        if (read_text(root, f"{CRASH_KEYS}/reuse") or "0").strip() not in ("", "0"):
            (folder / "reuse").write_text("0\n")
    except OSError as error:
        raise LoadError(
            f"The keys of the encrypted target cannot be named in {CRASH_KEYS}: {os_reason(error)}",
            hint="look at the kernel's log: journalctl -k",
            errno=error.errno,
        ) from error
    count, there = read_int(root, f"{CRASH_KEYS}/count"), sum(1 for _ in _folders(folder))
    if count != there:
        raise LoadError(
            f"The kernel counts {count} keys in {CRASH_KEYS}, where {there} are named",
            hint="look at the kernel's log: journalctl -k",
        )


def require_handed_over(root: Path = Path("/")) -> None:
    """Raises LoadError unless the capture kernel in place has keys.

    Writing to `reuse` fails without (config_keys_reuse_store asks for the image's dm_crypt_keys_addr); "0" is what it
    is anyway.
    """
    try:
        (below(root, CRASH_KEYS) / "reuse").write_text("0\n")
    except OSError as error:
        raise LoadError(
            "The kernel took the capture kernel without the keys of the encrypted target",
            hint="this kernel may not hand keys over on this machine's architecture; journalctl -k",
            errno=error.errno,
        ) from error


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
