# SPDX-License-Identifier: GPL-2.0-or-later
"""What the capture kernel is told: kdump.conf after the host has resolved it, so that nothing is guessed after a crash.

It travels in the image as JSON (`/etc/kdumpd/capture.json`): the file of a person is parsed once, on the host.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any, TypeAlias

from kdumpd.config.age_keys import recipient_keys
from kdumpd.config.disk_identity import DiskIdentity
from kdumpd.config.layout import Layout
from kdumpd.config.model import DEFAULT_DEADLINES, NO_HOOKS, Action, Deadlines, DumpSettings, Hooks
from kdumpd.config.network import Network
from kdumpd.errors import ConfigError

SSH_KEY = "/etc/kdumpd/ssh/id_ed25519"
KNOWN_HOSTS = "/etc/kdumpd/ssh/known_hosts"


class LayerKind(enum.StrEnum):
    """Block devices made of others that the capture kernel can bring up: LVM and md with the distribution's own tools,
    encrypted volumes (LUKS) by ourselves."""

    LVM = "lvm"
    MD = "md"
    CRYPT = "crypt"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A block device that has to be put together from others before there is a filesystem.

    `ident` outlives other names and places of the disks: for LVM the device mapper's UUID of the volume ("LVM-" and the
    UUIDs of group and volume, 32 characters each), for md the UUID of the array as mdadm(8) writes it, for an encrypted
    volume that of LUKS. `device` is the path that an md array gets; for an encrypted volume it is the `ident` of the
    layer below it, empty where that is a disk or a partition.
    """

    kind: LayerKind
    ident: str
    device: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalDestination:
    """A folder of a filesystem on a block device.

    `device` is `UUID=...`, `LABEL=...`, a path below /dev, or the tag of a virtiofs share. `directory` is the folder
    for crashes *inside* the filesystem, e.g. "/crash" where the host sees /var/crash on a separate /var. `layers` are
    brought up first, in their order; a `device` that is no path lies on the last of them. `options` are for mount(8).
    """

    device: str
    fstype: str
    directory: str
    layers: tuple[Layer, ...] = ()
    options: str = ""

    def __str__(self) -> str:
        return f"{self.directory} on {self.device} ({self.fstype})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawDestination:
    """A whole block device, without a filesystem; it lies on the last of `layers` (as in LocalDestination), or else is
    the one with `identity`. `device` is what a person calls it.
    """

    device: str
    layers: tuple[Layer, ...] = ()
    identity: DiskIdentity | None = None

    def __str__(self) -> str:
        return f"{self.device} (raw)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NfsDestination:
    """A folder below what a server exports. `addresses` are what it had when the host looked, tried in their order."""

    server: str
    export: str
    directory: str
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        host = f"[{self.server}]" if ":" in self.server else self.server
        return f"{self.directory} on {host}:{self.export} (nfs)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SshDestination:
    """A folder of an account on another machine.

    `host` is the name that the server's key is pinned by in `known_hosts`; `addresses` are what it had when the host
    looked, tried in their order. `key` and `known_hosts` are paths, the same on the host and in the capture image.
    """

    user: str
    host: str
    port: int
    directory: str
    addresses: tuple[str, ...] = ()
    key: str = SSH_KEY
    known_hosts: str = KNOWN_HOSTS

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port != 22 else ""
        return f"{self.directory} on {self.user}@{host}{port} (ssh)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Other nodes of a cluster, who are told that this machine is dumping, so that they do not switch it off.

    `program` is fence_kdump_send(8), `args` are its options, `addresses` what `nodes` had when the host looked.
    """

    program: str
    nodes: tuple[str, ...]
    args: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Fence:
        """Reads what dataclasses.asdict and JSON made of it. Raises TypeError or KeyError."""
        _require(raw["program"], str, "program")
        lists = {name: tuple(raw[name]) for name in ("nodes", "args", "addresses")}
        for name, words in lists.items():
            for word in words:
                _require(word, str, name)
        return cls(program=raw["program"], **lists)


Destination: TypeAlias = LocalDestination | RawDestination | NfsDestination | SshDestination
_KINDS: dict[str, type[Destination]] = {
    "local": LocalDestination,
    "raw": RawDestination,
    "nfs": NfsDestination,
    "ssh": SshDestination,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureConfig:
    """All that the collector has to know in the capture kernel.

    `destinations` are tried in their order until one has the dump. `kernel` is the release of the kernel this image
    was made for. `encrypt_to` are public keys of age: with any, nothing is written that is not encrypted to them.
    `hooks`, `extra_bins` and `extra_modules` are in the image besides what kdumpd itself needs.
    `network` is what leads to destinations on the network, and to the nodes of `fence`.
    `watchdogs` are drivers of those that go on counting in the capture kernel.
    """

    hostname: str
    kernel: str
    destinations: tuple[Destination, ...]
    dump: DumpSettings
    final_action: Action
    failure_action: Action
    encrypt_to: tuple[str, ...] = ()
    deadlines: Deadlines = DEFAULT_DEADLINES
    hooks: Hooks = NO_HOOKS
    extra_bins: tuple[str, ...] = ()
    extra_modules: tuple[str, ...] = ()
    network: Network | None = None
    watchdogs: tuple[str, ...] = ()
    layout: Layout = Layout.KDUMPD
    fence: Fence | None = None

    @property
    def asked(self) -> CaptureConfig:
        """Without what is only found out when an image is built: addresses of servers, and the way to them."""
        fence = None if self.fence is None else dataclasses.replace(self.fence, addresses=())
        return dataclasses.replace(self, destinations=tuple(map(_asked, self.destinations)), network=None, fence=fence)

    def to_json(self) -> str:
        """Stable text: sorted keys, one line per key, so that equal configurations are equal bytes."""
        raw = dataclasses.asdict(self)
        raw["destinations"] = [
            {"kind": _NAMES[type(destination)], **dataclasses.asdict(destination)} for destination in self.destinations
        ]
        return json.dumps(raw, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> CaptureConfig:
        """Reads what `to_json` wrote. Raises ConfigError naming `source` for anything else."""
        try:
            raw: dict[str, Any] = json.loads(text)
            fields = {field.name: raw[field.name] for field in dataclasses.fields(cls)}
            for name in ("hostname", "kernel"):
                _require(fields[name], str, name)
            fields["destinations"] = tuple(map(_destination, fields["destinations"]))
            fields["dump"] = DumpSettings.from_dict(fields["dump"])
            fields["final_action"] = Action(fields["final_action"])
            fields["failure_action"] = Action(fields["failure_action"])
            fields["encrypt_to"] = recipient_keys(" ".join(fields["encrypt_to"]))
            fields["deadlines"] = Deadlines.from_dict(fields["deadlines"])
            fields["layout"] = Layout(fields["layout"])
            fields["hooks"] = Hooks.from_dict(fields["hooks"])
            for name in ("extra_bins", "extra_modules", "watchdogs"):
                fields[name] = tuple(fields[name])
            fields["fence"] = None if fields["fence"] is None else Fence.from_dict(fields["fence"])
            fields["network"] = None if fields["network"] is None else Network.from_dict(fields["network"])
            return cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{source}: not a capture configuration: {error!r}",
                hint="rebuild the image: kdumpctl rebuild",
            ) from error


def _asked(destination: Destination) -> Destination:
    if isinstance(destination, NfsDestination | SshDestination):
        return dataclasses.replace(destination, addresses=())
    return destination


def _destination(raw: dict[str, Any]) -> Destination:
    kind = _KINDS[raw["kind"]]
    fields = {field.name: raw[field.name] for field in dataclasses.fields(kind)}
    if "layers" in fields:
        fields["layers"] = tuple(map(_layer, fields["layers"]))
    if "identity" in fields:
        fields["identity"] = _identity(fields["identity"])
    for name, value in fields.items():
        if name in ("layers", "identity"):
            continue
        if name == "addresses":
            fields[name] = tuple(value)
            for address in fields[name]:
                _require(address, str, name)
        else:
            _require(value, int if name == "port" else str, name)
    return kind(**fields)


def _identity(raw: dict[str, Any] | None) -> DiskIdentity | None:
    if raw is None:
        return None
    for name, kind in (("name", str), ("partition", int), ("sectors", int)):
        _require(raw[name], kind, name)
    return DiskIdentity(name=raw["name"], partition=raw["partition"], sectors=raw["sectors"])


def _layer(raw: dict[str, Any]) -> Layer:
    for name in ("ident", "device"):
        _require(raw[name], str, name)
    return Layer(kind=LayerKind(raw["kind"]), ident=raw["ident"], device=raw["device"])


def _require(value: object, kind: type, name: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} is not {'a number' if kind is int else 'text'}")
