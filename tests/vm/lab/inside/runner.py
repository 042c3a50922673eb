# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a test guest: takes commands as JSON lines on a virtio serial port and answers there."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path


def answer(request: dict) -> dict:
    """Runs what one line asks for."""
    given = base64.b64decode(request["input"]) if "input" in request else None
    try:
        done = subprocess.run(
            request["argv"],
            input=given,
            stdin=None if given is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=request["timeout"],
            cwd="/root",
        )
        rc, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        rc, out, err = -1, error.stdout or b"", (error.stderr or b"") + b"\n(stopped: out of time)\n"
    except OSError as error:
        rc, out, err = 127, b"", str(error).encode()
    encoded = {name: base64.b64encode(value).decode() for name, value in (("out", out), ("err", err))}
    return {"id": request["id"], "rc": rc, **encoded}


def port() -> str:
    """The device of the port that the host named; waits for its driver."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == "lab.commands":
                return f"/dev/{name.parent.name}"
        time.sleep(0.1)


def main() -> None:
    """Serves until the machine goes down."""
    line = os.open(port(), os.O_RDWR)
    pending = b""
    while True:
        data = os.read(line, 65536)
        if not data:
            time.sleep(0.1)
        *lines, pending = (pending + data).split(b"\n")
        for one in lines:
            try:
                request = json.loads(one)
            except ValueError:
                continue
            reply = json.dumps(answer(request)).encode() + b"\n"
            while reply:
                reply = reply[os.write(line, reply) :]


if __name__ == "__main__":
    main()
