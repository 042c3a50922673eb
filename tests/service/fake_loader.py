# SPDX-License-Identifier: GPL-2.0-or-later
"""The loader's process with a kernel made of files: `python3 -m fake_loader --root FOLDER`.

Like a real load it takes a while, in which the old capture kernel is gone and the new one is not there yet.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from fake_machine import FakeKernel, FakeMachine

from kdumpd.loader.__main__ import serve

_SECONDS = 0.15


class SlowKernel(FakeKernel):
    """Drops first, and takes its time."""

    def __call__(self, kernel_fd: int, initrd_fd: int, cmdline: str, flags: int) -> int:
        self._machine.crash_loaded(False)
        with (self._machine.root / "loads").open("a") as log:
            log.write(f"{flags}\n")
        time.sleep(_SECONDS)
        return super().__call__(kernel_fd, initrd_fd, cmdline, flags)


if __name__ == "__main__":
    kernel = SlowKernel(FakeMachine.existing(Path(sys.argv[sys.argv.index("--root") + 1])))
    sys.exit(serve(socket.socket(fileno=os.dup(0)), kernel.loader(), kernel.loader()))
