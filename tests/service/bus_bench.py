# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the bus are made of: a dbus-daemon of our own, the daemon's process, clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_machine import FakeMachine
from gi.repository import Gio, GLib

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
NAME, PATH, INTERFACE = "org.kdumpd.Kdump1", "/org/kdumpd/Kdump1", "org.kdumpd.Kdump1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
# An open policy for tests of what the service itself refuses; the shipped one for tests of the policy.
OPEN = """
<policy context="default">
  <allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
</policy>
"""
SYSTEM = """
<policy context="default">
  <allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/>
  <allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
  <allow receive_type="method_call"/><allow receive_type="method_return"/>
  <allow receive_type="error"/><allow receive_type="signal"/>
  <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
</policy>
<include>{policy}</include>
"""
ERROR = "org.kdumpd.Kdump1.Error."
MUTATING = ("Load", "Unload", "Reload", "Rebuild")
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>{policy}</busconfig>
"""

_AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from gi.repository import Gio, GLib
flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
bus = Gio.DBusConnection.new_for_address_sync(sys.argv[1], flags, None, None)
for word in sys.argv[2:]:
    interface, method = word.rsplit(".", 1)
    arguments = GLib.Variant("(s)", ("org.kdumpd.Kdump1.Manager",)) if method == "GetAll" else None
    try:
        bus.call_sync("org.kdumpd.Kdump1", "/org/kdumpd/Kdump1", interface, method, arguments, None, 0, 5000, None)
        print("ok")
    except GLib.Error as error:
        print(Gio.DBusError.get_remote_error(error))
"""


class Bus:
    """A dbus-daemon of our own."""

    def __init__(self, folder: Path, policy: str) -> None:
        folder.chmod(0o755)  # another user's client has to reach the socket
        path = folder / "bus"
        config = folder / "bus.conf"
        config.write_text(_CONFIG.format(socket=path, policy=policy))
        self.address = f"unix:path={path}"
        self._process = subprocess.Popen(
            ["dbus-daemon", "--nofork", "--nopidfile", "--nosyslog", f"--config-file={config}"],
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._process.pid
        wait(self._listens, "the bus")

    def _listens(self) -> bool:
        """Its socket has a name a moment before it takes connections."""
        with socket.socket(socket.AF_UNIX) as tried:
            return tried.connect_ex(self.address.removeprefix("unix:path=")) == 0

    def stop(self) -> None:
        """Ends the bus."""
        self._process.terminate()
        self._process.wait(60)


class Client:
    """A connection of its own, so that tests do not share state."""

    def __init__(self, address: str) -> None:
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        self.connection = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)

    def call(
        self, method: str, *, interface: str = INTERFACE, args: GLib.Variant | None = None, ms: int = 10_000
    ) -> Any:
        """Calls a method of the service; the values of its reply."""
        reply = self.connection.call_sync(
            NAME, PATH, interface, method, args, None, Gio.DBusCallFlags.NO_AUTO_START, ms, None
        )
        return reply.unpack()

    def get(self, name: str) -> Any:
        """One property."""
        return self.call("Get", interface=PROPERTIES, args=GLib.Variant("(ss)", (INTERFACE, name)))[0]

    def all(self) -> dict[str, Any]:
        """All properties."""
        found: dict[str, Any] = self.call("GetAll", interface=PROPERTIES, args=GLib.Variant("(s)", (INTERFACE,)))[0]
        return found

    def error(self, method: str, **options: Any) -> tuple[str, str]:
        """Name and text of the error that a call ends in."""
        with pytest.raises(GLib.Error) as caught:
            self.call(method, **options)
        name = Gio.DBusError.get_remote_error(caught.value) or ""
        return name, caught.value.message.removeprefix(f"GDBus.Error:{name}: ")


class Service:
    """The daemon's process."""

    def __init__(self, machine: FakeMachine, bus: Bus, *, real_builder: bool = False, processes: bool = False) -> None:
        self.machine = machine
        self.bus = bus
        self.log = machine.root.parent / "daemon.log"
        self._words = [sys.executable, str(HERE / "daemon.py"), str(machine.root), bus.address]
        self._words += ["real"] if real_builder else []
        self._words += ["processes"] if processes else []
        self.notify = _NotifySocket(machine.root.parent / f"notify-{os.urandom(4).hex()}")
        self.start()

    def start(self) -> None:
        """Starts it and waits for READY=1."""
        environ = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "NOTIFY_SOCKET": str(self.notify.path),
            "WATCHDOG_USEC": "400000",
        }
        environ.pop("JOURNAL_STREAM", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._words, stderr=log, env=environ, cwd=TOP)
        try:
            self.notify.wait_for("READY=1")
        except AssertionError as error:
            raise AssertionError(f"{error}; log: {self.log.read_text()}") from None
        self.client = Client(self.bus.address)

    def wait_state(self, state: str, seconds: float = 60) -> None:
        """Waits until the service is quiet on this rung."""
        wait(
            lambda: (self.client.get("State"), self.client.get("Activity")) == (state, ""),
            f"{state}; it is {self.client.all()}; log: {self.log.read_text()}",
            seconds,
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


class _NotifySocket:
    """Where sd_notify(3) messages arrive. Read all the time: a sender waits while the queue of the socket is full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []
        self._mark = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while data := self._socket.recv(65536):
            self.messages.append(data.decode())

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Waits for a message with `text` behind the one that the last wait was for."""

        def arrived() -> bool:
            for index, message in enumerate(self.messages[self._mark :], start=self._mark):
                if text in message:
                    self._mark = index + 1
                    return True
            return False

        wait(arrived, f"{text} from the service", seconds)

    def close(self) -> None:
        """No more messages."""
        self._socket.shutdown(socket.SHUT_RDWR)


def wait(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Polls until `condition` holds; AssertionError with `what` when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def runs(pid: int | str) -> bool:
    """Whether there is such a process; one that is only waited for (a zombie) is over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def as_nobody(address: str, *methods: str) -> list[str]:
    """What uid 65534 gets for each call."""
    words = [sys.executable, "-c", _AS_NOBODY, address, *methods]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=180).stdout.split()


def pump(condition: Callable[[], object], what: str) -> None:
    """Lets signals and answers arrive until `condition` holds."""
    context = GLib.MainContext.default()
    wait(lambda: (context.iteration(False), condition())[1], what)
