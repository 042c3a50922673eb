# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service does to the machine: builds images, loads and unloads the capture kernel, keeps the record of it.

The kernel drops the old capture kernel at the beginning of a load. So everything is checked before, the loaded pair is
kept, and when a load fails that pair is loaded again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kdumpd.config.kexec_syscall import KexecSyscall
from kdumpd.errors import KdumpError, LoadError, LoadLostError, os_reason
from kdumpd.host.kexec import KexecLoader, read_loaded
from kdumpd.host.kexec_pair import Pair, open_pair
from kdumpd.host.machine import now_usec
from kdumpd.service.early import Armed
from kdumpd.service.estimate import mib
from kdumpd.service.journal import Event, Journal
from kdumpd.service.kept import keep, prune
from kdumpd.service.model import Code, Facts, LoadedRecord
from kdumpd.service.places import Places
from kdumpd.service.records import LoadedFile


class Builder(Protocol):
    """How the service gets an image built."""

    def build(self, release: str) -> str:
        """Builds the image for kernel `release`, returns one line about it. Raises BuildError."""

    def cancel(self) -> bool:
        """Ends a build under way; False when there is none."""

    def stop(self) -> None:
        """Starts no other build: the service stops."""


class Actor:
    """The hands of the engine."""

    def __init__(self, places: Places, loader: KexecLoader, builder: Builder, journal: Journal) -> None:
        self._places = places
        self._loader = loader
        self._builder = builder
        self._journal = journal

    def build(self, release: str) -> None:
        """Builds the image of `release` and tells the journal. Raises BuildError."""
        start = time.monotonic()
        line = self._builder.build(release)
        usec = int((time.monotonic() - start) * 1e6)
        self._journal.tell(
            Event.BUILT,
            f"Built the capture image of kernel {release} in {usec / 1e6:.1f} s: {line}",
            kernel=release,
            duration_usec=usec,
        )

    def load(self, facts: Facts) -> None:
        """Loads kernel and image of `facts`, or the previous pair when that fails. Raises KdumpError."""
        if facts.kernel is None or facts.image.image_id is None:
            raise LoadError("There is no kernel or no image to load", hint="kdumpctl status")
        record = LoadedRecord(
            boot_id=facts.machine.boot_id,
            release=facts.machine.release,
            image_id=facts.image.image_id,
            kernel=str(facts.kernel),
            initrd=str(facts.image.path),
            initrd_sha256=facts.image.sha256,
            cmdline=facts.cmdline,
            syscall=facts.kexec_syscall.value,
            keys=facts.crypt_keys,
            loaded_usec=now_usec(),
            cpus=facts.around.topology.cpus,
            memory=facts.around.topology.memory,
        )
        file = LoadedFile(self._places.run_dir, facts.machine.boot_id)
        start = time.monotonic()
        _note(lambda: file.begin(record), self._places.run_dir)
        try:
            with open_pair(_pair(record)) as opened:
                self._loader.load(opened)
                kept = keep(self._places, record, opened, "" if facts.image.stale else facts.image.kernel_sha256)
        except KdumpError as error:
            raise self._restore(file, facts.loaded, error) from error
        # Should this fail, loading.json stays and tells that the record does not fit what the kernel holds.
        _note(lambda: file.commit(kept), self._places.run_dir)
        prune(self._places, kept)
        usec = int((time.monotonic() - start) * 1e6)
        tell_loaded(
            self._journal,
            Armed(
                release=record.release,
                image_id=record.image_id,
                initrd=record.initrd,
                reserved_bytes=facts.reserved_bytes,
                duration_usec=usec,
            ),
        )

    def soon(self) -> contextlib.AbstractContextManager[None]:
        """See KexecLoader."""
        return self._loader.soon()

    def unload(self, facts: Facts) -> None:
        """Unloads whatever the kernel holds. Raises KdumpError."""
        self._loader.unload()
        LoadedFile(self._places.run_dir, facts.machine.boot_id).forget()
        self._journal.tell(Event.UNLOADED, "Unloaded the capture kernel on request", kernel=facts.machine.release)

    def _restore(self, file: LoadedFile, previous: LoadedRecord | None, error: KdumpError) -> KdumpError:
        """After a failed load: the error to raise, once the previous pair is back if there was one."""
        if isinstance(error, LoadLostError):
            return error  # loading.json stays: the next look loads again
        if read_loaded(self._places.root):
            # The checks before the call failed, so nothing was touched.
            with contextlib.suppress(OSError):
                file.abandon()
            return error
        with contextlib.suppress(OSError):
            file.forget()
        if previous is None:
            return error
        code = error.errno if isinstance(error, LoadError) else None
        try:
            with open_pair(_pair(previous)) as opened:
                self._loader.load(opened)
            file.commit(previous)
        except (KdumpError, OSError) as second:
            sentence = f"{error.sentence}; the previous image could not be loaded again: {second}"
            return LoadError(sentence, hint=error.hint, errno=code)
        return LoadError(f"{error.sentence}; the previous image is loaded again", hint=error.hint, errno=code)


def tell_loaded(journal: Journal, armed: Armed) -> None:
    """The journal hears of a load."""
    journal.tell(
        Event.LOADED,
        f"Loaded the capture kernel {armed.release}, {mib(armed.reserved_bytes)} reserved",
        kernel=armed.release,
        initramfs=armed.initrd,
        image_id=armed.image_id,
        reserved_bytes=armed.reserved_bytes,
        duration_usec=armed.duration_usec,
    )


def tell_unloaded(journal: Journal, release: str, *, reports: bool) -> None:
    """The journal hears that somebody unloaded ours; `reports` is on_unload report."""
    journal.tell(
        Event.UNLOADED,
        "Somebody unloaded the capture kernel past kdumpd; it "
        + ("stays unloaded (on_unload report)" if reports else "is loaded again"),
        kernel=release,
        reason=Code.UNLOADED_BY_OTHER.value,
    )


def _pair(record: LoadedRecord) -> Pair:
    return Pair(
        kernel=Path(record.kernel),
        initrd=Path(record.initrd),
        initrd_sha256=record.initrd_sha256,
        cmdline=record.cmdline,
        kernel_sha256=record.kernel_sha256,
        syscall=KexecSyscall(record.syscall),
        keys=tuple(record.keys.split()),
    )


def _note(write: Callable[[], None], folder: Path) -> None:
    try:
        write()
    except OSError as error:
        raise LoadError(f"What is loaded cannot be noted in {folder}: {os_reason(error)}") from error
