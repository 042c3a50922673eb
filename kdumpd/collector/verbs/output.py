# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that a command makes: under another name until it is whole, so that nothing is touched before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from kdumpd.errors import DumpFormatError, TargetError, UsageError, os_reason
from kdumpd.targets.files import OutputFile

SUFFIX = ".incomplete"


class IncompleteError(DumpFormatError):
    """What was read was not whole, and so what was written is marked as incomplete and has not got its name."""


def check_name(out: Path, *, force: bool, sources: tuple[Path, ...] = ()) -> None:
    """Raises UsageError when `out` is taken, or could not be replaced even with `force`."""
    if not os.path.lexists(out):
        return
    if out.is_dir():
        raise UsageError(f"{out} is a directory", hint="name a file in it")
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is neither a regular file nor a new one", hint="-F writes a stream for pipes")
    if not force:
        raise UsageError(f"{out} exists", hint="give another name, or -f to replace it")
    for source in sources:
        with contextlib.suppress(OSError):
            if out.samefile(source):
                raise UsageError(f"{out} is what is read", hint="give another name")


class Output:
    """A file for `out`, 0600. As a context manager it is closed at the end, and kept unless `discard` was called."""

    def __init__(self, out: Path, *, force: bool, sources: tuple[Path, ...] = ()) -> None:
        """Raises UsageError or TargetError before anything is changed. `sources` must not be replaced."""
        check_name(out, force=force, sources=sources)
        self.out = out
        self.partial = out.with_name(out.name + SUFFIX)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if force:
                self.partial.unlink(missing_ok=True)
            self._fd = os.open(self.partial, flags, 0o600)
        except FileExistsError:
            raise UsageError(f"{self.partial} exists", hint="remove it if no dump is being written there") from None
        except OSError as error:
            raise TargetError(f"{self.partial} cannot be made: {os_reason(error)}") from error
        self.file = OutputFile(self._fd, str(self.partial))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.file.close()
            return
        if self._is_empty():
            self.discard()
        with contextlib.suppress(TargetError):  # the first error is the one to tell
            self.file.close()

    def _is_empty(self) -> bool:
        with contextlib.suppress(OSError):
            return os.fstat(self._fd).st_size == 0
        return False

    def discard(self) -> None:
        """Nothing of use was written."""
        with contextlib.suppress(OSError):
            self.partial.unlink()

    def only_if_complete(self, *incomplete: str) -> None:
        """Raises IncompleteError when any are named that were read and were `incomplete`."""
        if incomplete:
            names = " and ".join(incomplete)
            raise IncompleteError(f"{names} is incomplete; {self.partial} holds what there is")

    def commit(self) -> None:
        """Gives the file its name and makes that durable. Raises TargetError; the file then keeps its other name."""
        try:
            self.partial.rename(self.out)
            parent = os.open(self.out.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
        except OSError as error:
            raise TargetError(f"{self.partial} cannot be renamed to {self.out}: {os_reason(error)}") from error
