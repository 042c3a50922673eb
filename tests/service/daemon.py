# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as a process on a machine of files: `daemon.py ROOT ADDRESS [real] [processes]`.

All of it is the real one but the system call and, unless it is `real`, the builder. A build waits while a file `slow`
lies in the root, so that tests can look at a service that is busy. With `processes` the loader is a child, as it is
where no systemd runs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fake_machine import FakeBuilder, FakeKernel, FakeMachine  # the checkout has to be found first

from kdumpd.errors import CancelledError
from kdumpd.host.kexec import KexecLoader
from kdumpd.loader.client import ProcessLoader
from kdumpd.service.__main__ import main


class SlowBuilder(FakeBuilder):
    """Waits for the file to go away."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__(machine)
        self._slow = machine.root / "slow"
        self._fail = machine.root / "fail"
        self._cancelled = False

    def build(self, release: str) -> str:
        while self._slow.exists():
            time.sleep(0.02)
            if self._cancelled:  # perhaps even before this began
                self._cancelled = False
                raise CancelledError("The build of the capture image was cancelled")
        if self._fail.exists():
            self.fail = [self._fail.read_text()]
        return super().build(release)

    def cancel(self) -> bool:
        self._cancelled = True
        return self._slow.exists()

    def stop(self) -> None:
        self.cancel()


if __name__ == "__main__":
    machine = FakeMachine.existing(Path(sys.argv[1]))
    words = ["--root", sys.argv[1], "--bus-address", sys.argv[2], "--interval", "0.3"]
    builder = None if "real" in sys.argv else SlowBuilder(machine)
    loader: KexecLoader = FakeKernel(machine).loader()
    if "processes" in sys.argv:
        run_dir = machine.root / "run/kdumpd"
        loader = ProcessLoader(run_dir, root=machine.root, units=False, module="fake_loader")
    sys.exit(main(words, loader=loader, builder=builder))
