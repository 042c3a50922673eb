# SPDX-License-Identifier: GPL-2.0-or-later
"""The real polkitd with the policy file that is shipped: who is no root may what an administrator's rule says."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_bench import ERROR, INTERFACE, TOP, Bus, Client, Service, as_nobody, wait
from fake_machine import FakeMachine
from gi.repository import Gio, GLib

POLICY = TOP / "units/org.kdumpd.Kdump1.policy"
METHODS = [f"{INTERFACE}.{name}" for name in ("Reload", "ListCrashes", "TestCrash")]
# In a mount namespace of its own polkitd finds our policy and our rule, and nothing else of this machine.
_START = """
set -eu
for folder in /usr/share/polkit-1/actions /usr/share/polkit-1/rules.d /etc/polkit-1/rules.d; do
	mkdir -p "$folder"
	mount -t tmpfs -o mode=0755 none "$folder"
done
cp "$1" /usr/share/polkit-1/actions/
printf '%s' "$2" >/etc/polkit-1/rules.d/10-test.rules
exec /usr/lib/polkit-1/polkitd --no-debug
"""
_RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "org.kdumpd.Kdump1.manage" && subject.user == "nobody") { return polkit.Result.YES; }
});
"""


def _runs(client: Client) -> bool:
    arguments = GLib.Variant("(s)", ("org.freedesktop.PolicyKit1",))
    answer = client.connection.call_sync(
        "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "NameHasOwner", arguments, None,
        Gio.DBusCallFlags.NONE, 5000, None,
    )  # fmt: skip
    return bool(answer.unpack()[0])


@contextlib.contextmanager
def polkitd(bus: Bus, rule: str, log: Path) -> Iterator[None]:
    """The real one, on this bus."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", _START, "sh", str(POLICY), rule],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
            stdout=output,
            stderr=output,
        )
    try:
        client = Client(bus.address)
        wait(lambda: _runs(client) or process.poll() is not None, f"polkitd: {log.read_text()}")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize(
    ("rule", "answers"),
    [("", [ERROR + "Denied"] * 3), (_RULE, ["ok", ERROR + "Denied", ERROR + "Denied"])],
    ids=["as shipped", "with a rule"],
)
def test_the_real_polkitd_decides(
    service: Service, machine: FakeMachine, tmp_path: Path, rule: str, answers: list[str]
) -> None:
    with polkitd(service.bus, rule, tmp_path / "polkitd.log"):
        assert as_nobody(service.bus.address, *METHODS) == answers
        # It did answer: the policy is one that it could read, and knows each action.
        for action in ("manage", "read-dumps", "test-crash", "set-reservation"):
            words = ["pkaction", "--verbose", "--action-id", f"org.kdumpd.Kdump1.{action}"]
            shown = subprocess.run(
                words,
                env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": service.bus.address},
                capture_output=True,
                text=True,
                check=True,
            )
            assert "implicit any:      auth_admin\n" in shown.stdout
        assert service.client.call("Reload") == ()
    assert not (machine.root / "var/lib/kdumpd/tag.json").exists()
