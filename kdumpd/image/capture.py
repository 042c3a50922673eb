# SPDX-License-Identifier: GPL-2.0-or-later
"""What the capture kernel is told, put together from kdump.conf and the resolved targets; and where init lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdumpd.config.capture import CaptureConfig
from kdumpd.config.model import Config
from kdumpd.errors import BuildError
from kdumpd.host.mounts import ResolvedTarget

_INIT = "initramfs/busybox/init"
# A checkout is asked first, so that what is tried out there is what runs.
_PLACES = (Path(__file__).resolve().parents[2], Path("/usr/share/kdumpd"), Path("/usr/local/share/kdumpd"))


def capture_config(config: Config, resolved: Sequence[ResolvedTarget], hostname: str, release: str) -> CaptureConfig:
    """The settings of a capture by kernel `release` on machine `hostname`."""
    return CaptureConfig(
        hostname=hostname,
        kernel=release,
        destinations=tuple(target.destination for target in resolved),
        dump=config.dump,
        final_action=config.final_action,
        failure_action=config.failure_action,
        encrypt_to=config.encrypt_to,
    )


def find_init(places: tuple[Path, ...] = _PLACES) -> Path:
    """The init script of the capture image. Raises BuildError when kdumpd is not installed whole."""
    for place in places:
        if (place / _INIT).is_file():
            return place / _INIT
    raise BuildError(
        f"the init of the capture image is missing: no {_INIT} in {' or '.join(map(str, places))}",
        hint="install kdumpd again",
    )
