# SPDX-License-Identifier: GPL-2.0-or-later
"""The introspection files: what the service exports is what is written there."""

from __future__ import annotations

from pathlib import Path

from kdumpd.errors import UnsupportedError

_FILES = {"org.kdumpd.Kdump1.Manager": "org.kdumpd.Kdump1.xml"}


def introspection_xml(interface: str) -> str:
    """The XML of an interface: beside the package in a checkout, else where it was installed."""
    name = _FILES.get(interface, f"{interface}.xml")
    places = (
        Path(__file__).parents[3] / "units" / name,
        Path("/usr/share/dbus-1/interfaces") / name,
    )
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise UnsupportedError(f"{places[1]} is missing", hint="install the package kdumpd again")
