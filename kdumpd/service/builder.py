# SPDX-License-Identifier: GPL-2.0-or-later
"""Gets images built: in kdumpd-build@.service, or by a child process where no systemd runs.

Both run `python3 -m kdumpd.image build`, which tells how far it is in a file of the run folder. A build in its unit
goes on when this service is restarted; asked for again, systemd joins the new request to it. Knows nothing of images.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdumpd.errors import BuildError, CancelledError
from kdumpd.host.units import instance
from kdumpd.service.json_file import read_json
from kdumpd.service.places import Places

_SECONDS = 900  # a build takes half a minute on a slow machine; something hangs that takes this long
_POLL_SECONDS = 0.2
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]

Report = Callable[[str, float], None]


class ImageBuilder:
    """See the module. `report` hears the phase and how far the build is (0 to 1); `units` says that systemd has the
    unit kdumpd-build@.
    """

    def __init__(self, places: Places, report: Report, *, units: bool) -> None:
        self._places = places
        self._report = report
        self._units = units
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._release = ""
        self._cancelled = False
        self._stopped = False

    def build(self, release: str) -> str:
        """Builds the image for kernel `release`; returns one line about it.

        Raises BuildError, or CancelledError after `cancel`.
        """
        told = self._places.run_dir / "jobs" / f"build-{release}.json"
        with self._lock:
            if self._stopped:
                raise CancelledError("The service is stopping")
            self._cancelled = False
            self._release = release
            child = self._child = self._start(release, told)
        try:
            err = self._wait(child, told)
        finally:
            self._child = None
        if child.returncode == 0 and (facts := (read_json(told) or {}).get("result")) is not None:
            return _line(facts)
        if self._stopped:
            raise CancelledError("The service stopped while the capture image was built")
        if self._cancelled:
            raise CancelledError("The build of the capture image was cancelled", hint="kdumpctl rebuild")
        raise self._error(child.returncode, err, read_json(told) or {})

    def cancel(self) -> bool:
        """Ends a build under way; what it was making is thrown away, the old image stays. False when there is none."""
        with self._lock:
            if self._child is None:
                return False
            self._cancelled = True
            if self._units:
                # The unit's own processes; systemctl then sees that the start failed.
                subprocess.run(_systemctl("stop", "--no-block", self._unit(self._release)), check=False, timeout=30)
            else:
                self._child.terminate()
        return True

    def stop(self) -> None:
        """The service ends: a build in its own unit goes on, a child is ended."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.terminate()

    def _start(self, release: str, told: Path) -> subprocess.Popen[str]:
        command = _systemctl("start", self._unit(release)) if self._units else self._command(release, told)
        try:
            told.parent.mkdir(mode=0o700, exist_ok=True)
            if not self._units or not _active(self._unit(release)):
                told.unlink(missing_ok=True)  # what an earlier build said is not what this one says
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=_environment(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"The image builder cannot be started: {error}") from error

    def _command(self, release: str, told: Path) -> list[str]:
        # Whatever ends this service ends its child: a build that nobody waits for would keep the next one out.
        words = ["setpriv", "--pdeathsig", "TERM", sys.executable or "/usr/bin/python3", "-m", "kdumpd.image", "build"]
        words += ["--kernel", release, "--output", str(self._places.state_dir / release)]
        return [*words, "--root", str(self._places.root), "--report", str(told)]

    def _wait(self, child: subprocess.Popen[str], told: Path) -> str:
        """Waits for the end and passes on what the builder tells meanwhile; returns the last words on stderr."""
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                return child.communicate(timeout=_POLL_SECONDS)[1]
            except subprocess.TimeoutExpired:
                self._pass_on(read_json(told) or {})
            if time.monotonic() > deadline:
                self.cancel()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.communicate(timeout=10)
                child.kill()
                child.communicate()
                raise BuildError(f"The image builder was ended after {_SECONDS} s", hint=self._journal_hint())

    def _pass_on(self, told: dict[str, Any]) -> None:
        phase, progress = told.get("phase"), told.get("progress")
        if isinstance(phase, str) and isinstance(progress, int | float):
            self._report(phase, min(1.0, max(0.0, float(progress))))

    def _error(self, status: int, err: str, told: dict[str, Any]) -> BuildError:
        """The builder's own sentence, or what can be said about a builder that told none."""
        failed = told.get("error")
        if isinstance(failed, dict) and isinstance(failed.get("sentence"), str):
            hint = failed.get("hint")
            hint = hint if isinstance(hint, str) else None
            return BuildError(f"The capture image could not be built: {failed['sentence']}", hint=hint)
        last = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "and said nothing")
        how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
        return BuildError(f"The image builder {how}: {last}", hint=self._journal_hint())

    def _journal_hint(self) -> str | None:
        return f"journalctl -u '{self._unit(self._release)}'" if self._units else None

    @staticmethod
    def _unit(release: str) -> str:
        return f"kdumpd-build@{instance(release)}.service"


def _systemctl(*words: str) -> list[str]:
    return ["systemctl", "--no-ask-password", "--quiet", *words]


def _active(unit: str) -> bool:
    done = subprocess.run(
        ["systemctl", "show", "--property=ActiveState", "--value", unit],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.stdout.strip() in ("active", "activating", "reloading")


def _environment() -> dict[str, str]:
    """No more than the builder needs; PYTHONPATH leads to this very package, in a checkout too."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(_PACKAGE_PARENT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _line(facts: Any) -> str:
    try:
        return (
            f"{facts['unpacked_bytes'] / 1e6:.1f} MB, {facts['packed_bytes'] / 1e6:.1f} MB packed,"
            f" {facts['modules']} kernel modules"
        )
    except (KeyError, TypeError):
        return "its size is not known"
