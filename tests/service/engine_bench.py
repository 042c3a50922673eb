# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine on a machine of files, with what it showed and said."""

from __future__ import annotations

import io

from fake_machine import FakeBuilder, FakeKernel, FakeMachine

from kdumpd.service.actions import Actor
from kdumpd.service.engine import Engine
from kdumpd.service.journal import Journal
from kdumpd.service.places import Places
from kdumpd.service.status import Status


def codes(status: Status) -> list[str]:
    """Of its reasons."""
    return [reason.code.value for reason in status.state.reasons]


class Bench:
    """An engine on a fake machine."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.kernel = FakeKernel(machine)
        self.builder = FakeBuilder(machine)
        self.seen: list[Status] = []
        self.journal = io.StringIO()
        self.restart()

    def restart(self) -> None:
        """A new service on the same machine, as after SIGKILL."""
        places = Places.below(self.machine.root)
        for folder in (places.state_dir, places.run_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = Journal(self.journal)
        actor = Actor(places, self.kernel.loader(), self.builder, journal)
        self.engine = Engine(places, actor, journal, self.seen.append)

    @property
    def status(self) -> Status:
        return self.seen[-1]

    @property
    def rung(self) -> str:
        return self.status.state.rung.value

    def codes(self) -> list[str]:
        return codes(self.status)

    def lines(self) -> list[str]:
        return self.journal.getvalue().splitlines()
