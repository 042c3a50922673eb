# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the image builder as a child process, and can stop it. Knows its command line and nothing of images."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from kdumpd.errors import BuildError
from kdumpd.service.places import Places

_SECONDS = 900  # a build takes half a minute on a slow machine; something hangs that takes this long
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class SubprocessBuilder:
    """`python3 -m kdumpd.image build`."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._stopped = False

    def build(self, release: str) -> str:
        """Builds the image for kernel `release`; returns one line about it. Raises BuildError."""
        output = self._places.state_dir / release
        root = str(self._places.root)
        command = [sys.executable or "/usr/bin/python3", "-m", "kdumpd.image", "build", "--json"]
        command += ["--kernel", release, "--output", str(output), "--root", root]
        with self._lock:
            if self._stopped:
                raise BuildError("The service is stopping")
            try:
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    env=_environment(),
                )
            except OSError as error:
                raise BuildError(f"The image builder cannot be started: {error}") from error
        try:
            out, err = self._child.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            self._child.kill()
            self._child.communicate()
            raise BuildError(f"The image builder was ended after {_SECONDS} s") from error
        if self._stopped:
            raise BuildError("The build of the capture image was ended, because the service stops")
        if self._child.returncode != 0:
            raise _error(self._child.returncode, err)
        return _line(out)

    def stop(self) -> None:
        """Ends a build under way; what it was making is thrown away, the old image stays."""
        with self._lock:
            self._stopped = True
            if self._child is not None and self._child.poll() is None:
                self._child.terminate()


def _environment() -> dict[str, str]:
    """No more than the builder needs; PYTHONPATH leads to this very package, in a checkout too."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(_PACKAGE_PARENT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _error(status: int, err: str) -> BuildError:
    """The builder's last line is its sentence, with the hint in brackets at its end."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    if not lines:
        cause = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
        return BuildError(f"The image builder {cause} and said nothing")
    sentence, bracket, hint = lines[-1].removeprefix("kdumpd.image: ").rpartition(" (")
    if bracket and hint.endswith(")"):
        return BuildError(f"The capture image could not be built: {sentence}", hint=hint[:-1])
    return BuildError(f"The capture image could not be built: {sentence}{bracket}{hint}")


def _line(out: str) -> str:
    try:
        facts = json.loads(out)
        return (
            f"{facts['unpacked_bytes'] / 1e6:.1f} MB, {facts['packed_bytes'] / 1e6:.1f} MB packed,"
            f" {facts['modules']} kernel modules"
        )
    except (ValueError, KeyError, TypeError):
        return "its size is not known"
