# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump that is encrypted as it is written: flattened, as what is encrypted is a stream, and then sealed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from kdumpd.config.age_keys import recipient_key
from kdumpd.dumpfile.flattened import FlattenedSink
from kdumpd.dumpfile.sealed import CHUNK, SEALED_CHUNK, FileKey, FileStream, SealedStream, known_key
from kdumpd.dumpfile.sink import Sink, Stream
from kdumpd.errors import KdumpError

# For the header and the heads of records, when it is asked how much still fits.
_OVERHEAD = 64 << 10


class SealedSink(FlattenedSink):
    """A Sink that writes an age file for `recipients` (age1...) to a stream."""

    def __init__(
        self, stream: Stream, recipients: Sequence[str], *, free_bytes: Callable[[], int | None] = lambda: None
    ) -> None:
        """Sends both headers. `free_bytes` is how much more the stream can take. Raises UnsupportedError where the
        library for it is missing."""
        sealed = SealedStream(stream, [recipient_key(recipient) for recipient in recipients])
        self._sealed: SealedStream | None = sealed
        self._free_bytes = free_bytes
        super().__init__(sealed)

    @property
    def find_key(self) -> FileKey | None:
        """Opens what was written, to check it; until `forget`. Nobody else but the recipients can."""
        return None if self._sealed is None else known_key(self._sealed.file_key)

    def forget(self) -> None:
        """The key of the file goes: nothing more is written or read."""
        self._sealed = None

    def free_bytes(self) -> int | None:
        """What fits of a dump into the room that is left; None where that is not known."""
        free = self._free_bytes()
        return None if free is None else max(0, free - _OVERHEAD) // SEALED_CHUNK * CHUNK

    def end(self) -> None:
        """The dump is complete: the record that says so, and the last chunk."""
        super().end()
        if self._sealed is not None:
            self._sealed.end()

    def leave(self) -> None:
        """The dump stays incomplete; what waits for its chunk to become full is still sent, if that can be."""
        with contextlib.suppress(KdumpError):
            if self._sealed is not None:
                self._sealed.end()


def seal_data(sink: Sink, recipients: Sequence[str], data: bytes) -> FileStream:
    """Writes `data` encrypted to a new file and waits until it is safe. Returns what counts size and checksum."""
    stream = FileStream(sink)
    sealed = SealedStream(stream, [recipient_key(recipient) for recipient in recipients])
    sealed.send(data)
    sealed.end()
    return stream
