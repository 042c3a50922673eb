# SPDX-License-Identifier: GPL-2.0-or-later
"""The one tree of errors.

Each error carries a sentence for a person, optionally a hint (what to type next), the name it has on
D-Bus and the exit code of the command that fails with it. Errors are raised in the core and rendered
at the edges: the journal, D-Bus, a terminal, the console of the capture kernel.
"""

from __future__ import annotations

import os
from typing import ClassVar

_BUS = "org.kdumpd.Kdump1.Error."


class KdumpError(Exception):
    """The root of the tree: `sentence` says what happened and why, `hint` what mends it."""

    dbus_name: ClassVar[str] = _BUS + "Failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, *, hint: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint

    def __str__(self) -> str:
        return self.sentence if self.hint is None else f"{self.sentence} ({self.hint})"


class UsageError(KdumpError):
    """The words of a command line are off."""

    dbus_name = _BUS + "InvalidArguments"
    exit_code = 2


class ConfigError(KdumpError):
    """kdump.conf says something that cannot be followed; the sentence begins with file:line."""

    dbus_name = _BUS + "Config"


class UnsupportedError(KdumpError):
    """This kernel, machine or build of kdumpd lacks what was asked for."""

    dbus_name = _BUS + "Unsupported"


class NotReservedError(KdumpError):
    """The kernel runs without memory set aside for a capture kernel."""

    dbus_name = _BUS + "NotReserved"


class NotArmedError(KdumpError):
    """A crash of this machine would leave no dump."""

    dbus_name = _BUS + "NotArmed"


class LoadError(KdumpError):
    """The kernel refused to load or unload a capture kernel."""

    dbus_name = _BUS + "Load"

    def __init__(self, sentence: str, *, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(sentence, hint=hint)
        self.errno = errno


class LoadLostError(LoadError):
    """A load ended in a way that leaves unknown what the kernel holds now."""


class BuildError(KdumpError):
    """The capture initramfs could not be built, or did not pass its check."""

    dbus_name = _BUS + "Build"


class BusyError(KdumpError):
    """Another load, unload or build is under way."""

    dbus_name = _BUS + "Busy"


class CancelledError(KdumpError):
    """A job was ended on request, or because the service stops."""

    dbus_name = _BUS + "Cancelled"


class LimitError(KdumpError):
    """The caller asks for too much at once."""

    dbus_name = _BUS + "Limit"


class DeniedError(KdumpError):
    """The caller may not do this."""

    dbus_name = _BUS + "Denied"


class NotFoundError(KdumpError):
    """A crash, file or object that was named does not exist."""

    dbus_name = _BUS + "NotFound"


class VmcoreError(KdumpError):
    """The crashed memory, or a part of it, cannot be read or understood."""

    dbus_name = _BUS + "Vmcore"


class DumpFormatError(KdumpError):
    """A dump file does not follow its format."""

    dbus_name = _BUS + "DumpFormat"


class TargetError(KdumpError):
    """The place where the dump goes cannot be reached or written."""

    dbus_name = _BUS + "Target"


class TargetLockedError(TargetError):
    """The place where the dump goes is encrypted, and the capture kernel would not have the key."""

    dbus_name = _BUS + "TargetLocked"


class NoSpaceError(TargetError):
    """The target is full."""

    dbus_name = _BUS + "NoSpace"


class ServiceUnreachableError(KdumpError):
    """The kdumpd service does not answer on D-Bus."""

    dbus_name = _BUS + "ServiceUnreachable"


def os_reason(error: OSError) -> str:
    """The kernel's own words for `error`, without Python's "[Errno 28]" in front."""
    return os.strerror(error.errno) if error.errno else str(error)
