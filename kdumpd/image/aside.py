# SPDX-License-Identifier: GPL-2.0-or-later
"""Something that is done in a thread of its own, while others wait for programs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """Begins with `work` at once."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Returns when the work is done, however it went."""
        self._thread.join()

    def result(self) -> T:
        """What the work gave. Raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._done[0]
