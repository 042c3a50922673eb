# SPDX-License-Identifier: GPL-2.0-or-later
"""What the supervisor (initramfs/busybox/init) is told: it reads no JSON, so that it needs no Python.

`/etc/kdumpd/supervisor` has a name and a value on each line; `/etc/kdumpd/hooks/*` the programs to run; and
`/etc/kdumpd/note` is the beginning of the manifest that it leaves when the collector could not write one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import PurePosixPath

import kdumpd
from kdumpd.config.capture import CaptureConfig, Layer, LayerKind, LocalDestination
from kdumpd.config.layout import host_label
from kdumpd.config.model import Action
from kdumpd.dumpfile.manifest import FORMAT, Result
from kdumpd.targets.layers import lv_uuid, mapped_uuid

FOLDER = "etc/kdumpd"


def supervisor_files(capture: CaptureConfig) -> dict[str, str]:
    """The texts by their path in the image."""
    files = {
        f"{FOLDER}/supervisor": "".join(f"{name} {value}\n" for name, value in _settings(capture)),
        f"{FOLDER}/note": _note(capture),
    }
    for kind in dataclasses.fields(capture.hooks):
        paths = getattr(capture.hooks, kind.name)
        if paths:
            files[f"{FOLDER}/hooks/{kind.name}"] = "".join(f"{path}\n" for path in paths)
    return files


def _settings(capture: CaptureConfig) -> list[tuple[str, object]]:
    deadlines, hooks = capture.deadlines, capture.hooks
    late = (*hooks.post, *hooks.kdump_post, *hooks.emergency, *hooks.kdump_emergency)
    # What dump_to_rootfs adds is the last target of the chain; after that there is nothing left to do.
    failed = Action.REBOOT if capture.failure_action is Action.DUMP_TO_ROOTFS else capture.failure_action
    return [
        ("hostname", host_label(capture.hostname)),
        ("targets", len(capture.destinations)),
        ("final_action", capture.final_action),
        ("failure_action", failed),
        ("shell_timeout", deadlines.shell_sec),
        ("deadline_total", deadlines.total_sec),
        ("deadline_stall", deadlines.stall_sec),
        ("deadline_hook", deadlines.hook_sec),
        ("late_hooks", len(late)),
        ("fence", "yes" if capture.fence is not None and capture.fence.addresses else "no"),
        ("watchdog", "yes" if capture.watchdogs else "no"),
        ("messages", "no" if capture.encrypt_to else "yes"),  # a shell encrypts nothing
        *(line for place in capture.destinations if isinstance(place, LocalDestination) for line in _place(place)),
    ]


def _place(place: LocalDestination) -> list[tuple[str, object]]:
    """A filesystem for a note, behind what it has to be put together of."""
    layers: list[tuple[str, object]] = [("layer", _assembled(layer)) for layer in place.layers]
    where = f"{place.device} {place.fstype} {place.options or 'rw'} {PurePosixPath(place.directory)}"
    return [*layers, ("local", where)]


def _assembled(layer: Layer) -> str:
    """A block device made of others, for a shell, which finds what is encrypted when the collector has opened it."""
    if layer.kind is LayerKind.LVM:
        return f"lvm {layer.ident} {lv_uuid(layer)}"
    if layer.kind is LayerKind.CRYPT:
        return f"crypt {mapped_uuid(layer.ident)} -"
    return f"md {layer.ident} {layer.device}"


def _note(capture: CaptureConfig) -> str:
    """All of a manifest but its reason and its times, and without its end."""
    known = {
        "format": FORMAT,
        "result": Result.FAILED.value,
        "hostname": capture.hostname,
        "kernel": capture.kernel,
        "kdumpd_version": kdumpd.__version__,
    }
    return json.dumps(known, indent=1).removesuffix("\n}") + ",\n"
