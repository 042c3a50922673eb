# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices that are made of others, put together in the capture kernel with the tools of the first one.

There is no udev here: lvm(8) and mdadm(8) look at the disks themselves and make the device nodes. They are asked again
and again, since a disk may take its time to appear. Encrypted volumes need no tool: see dm_crypt.py.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdumpd.config.capture import Layer, LayerKind
from kdumpd.errors import TargetError, os_reason

TOOLS = {LayerKind.LVM: "/usr/sbin/lvm", LayerKind.MD: "/usr/sbin/mdadm"}
LVM_SETTINGS = "/etc/kdumpd/lvm"
_TOOL_DEADLINE_SEC = 60.0
_POLL_SEC = 0.5
_SYSFS = Path("/sys/class/block")


def bring_up(layers: Sequence[Layer], deadline_sec: float, alive: Callable[[], None]) -> Path | None:
    """The device of the last of `layers`, None when there are none. Each may take `deadline_sec`; `alive` is called
    while it does. Raises TargetError."""
    made: dict[str, Path] = {}
    for layer in layers:
        made[layer.ident] = _bring_up(layer, made, deadline_sec, alive)
    return made[layers[-1].ident] if layers else None


def _bring_up(layer: Layer, made: Mapping[str, Path], deadline_sec: float, alive: Callable[[], None]) -> Path:
    start = time.monotonic()
    said = ""
    while True:
        node = _find(layer)
        if node is not None:
            return node
        waited = time.monotonic() - start
        if waited >= deadline_sec:
            why = f": {said}" if said else ""
            raise TargetError(
                f"{_name(layer)} could not be put together within {deadline_sec:.0f} s{why}",
                hint="are its disks there, and their drivers in the image? On the running system: kdumpctl rebuild",
            )
        alive()
        # An array starts without a member only when that has had its time to appear.
        said = _open(layer, made) if layer.kind is LayerKind.CRYPT else _ask(layer, patient=waited < deadline_sec / 2)
        if _find(layer) is None:
            time.sleep(_POLL_SEC)


def _name(layer: Layer) -> str:
    words = {LayerKind.LVM: "LVM volume", LayerKind.MD: "md array", LayerKind.CRYPT: "encrypted volume"}
    return f"the {words[layer.kind]} {layer.ident}"


def _find(layer: Layer) -> Path | None:
    """Its device node, once it can be read."""
    if layer.kind is not LayerKind.MD:
        wanted = mapped_uuid(layer.ident) if layer.kind is LayerKind.CRYPT else layer.ident
        for path in _SYSFS.glob("dm-*/dm/uuid"):
            # A mapping without a table, which is being made, has no size.
            if _text(path) == wanted and _text(path.parents[1] / "size") != "0":
                return _node(Path("/dev") / path.parents[1].name)
        return None
    state = _text(_SYSFS / os.path.basename(layer.device) / "md/array_state")
    return None if state in ("", "clear", "inactive") else _node(Path(layer.device))


def _node(path: Path) -> Path | None:
    return path if path.is_block_device() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def mapped_uuid(uuid: str) -> str:
    """The device mapper's UUID of the mapping that is made of the LUKS volume `uuid`."""
    return f"CRYPT-LUKS2-{uuid.replace('-', '')}-kdumpd"


def _open(layer: Layer, made: Mapping[str, Path]) -> str:
    """As _ask, for an encrypted volume."""
    from kdumpd.targets import dm_crypt  # who has no such target does without

    return dm_crypt.bring_up(layer, made[layer.device] if layer.device else None)


def _ask(layer: Layer, *, patient: bool) -> str:
    """Has the tool try once; its last words when it fails."""
    tool = TOOLS[layer.kind]
    if layer.kind is LayerKind.LVM:
        arguments = ["lvchange", "--activate", "y", "--sysinit", "--ignoreactivationskip", "--select"]
        arguments.append(f"lv_uuid={lv_uuid(layer)}")
    else:
        arguments = ["--assemble", layer.device, f"--uuid={layer.ident}", "--no-degraded" if patient else "--run"]
    environ = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C", "LVM_SYSTEM_DIR": LVM_SETTINGS, "MDADM_NO_UDEV": "1"}
    try:
        done = subprocess.run(
            [tool, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_DEADLINE_SEC,
            check=False,
            env=environ,
        )
    except subprocess.TimeoutExpired:
        return f"{tool} did not end within {_TOOL_DEADLINE_SEC:.0f} s"
    except OSError as error:
        return f"{tool} cannot be run: {os_reason(error)}"
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1].strip() if lines else f"{tool} ended with {done.returncode} and found nothing"


def lv_uuid(layer: Layer) -> str:
    """The UUID of an LVM volume as its tools write it: 6-4-4-4-4-4-6 characters."""
    uuid = layer.ident[-32:]
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(uuid[start:end] for start, end in itertools.pairwise(cuts))
