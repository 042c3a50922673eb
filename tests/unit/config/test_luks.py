# SPDX-License-Identifier: GPL-2.0-or-later
"""LUKS headers, made by cryptsetup(8) of this machine: what they say, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdumpd.config.luks import HEADER_BYTES, Read, Volume, read_volume, uuid_of
from kdumpd.errors import KdumpError, TargetError, UnsupportedError

UUID = "af0405db-8e38-4a1c-a4b7-1a88dbb2f72b"
MIB = 1 << 20


def _format(folder: Path, kind: str, *words: str) -> bytes:
    path = folder / "volume"
    with path.open("wb") as file:
        file.truncate(24 * MIB)
    options = ["--type", kind, "--pbkdf-force-iterations", "1000", "--uuid", UUID, *words]
    if kind == "luks2":
        options += ["--pbkdf", "pbkdf2"]
    command = ["cryptsetup", "-q", "luksFormat", *options, str(path), "-"]
    subprocess.run(command, input=b"passphrase", check=True, capture_output=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def luks1(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _format(tmp_path_factory.mktemp("luks1"), "luks1", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256")


@pytest.fixture(scope="module")
def luks2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _format(tmp_path_factory.mktemp("luks2"), "luks2", "--sector-size", "4096")


def reader(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


def changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The same volume with another JSON, under a checksum that is right."""
    size = int.from_bytes(data[8:16], "big")
    raw = json.loads(data[HEADER_BYTES:size].partition(b"\0")[0])
    change(raw)
    area = bytearray(data[:HEADER_BYTES] + json.dumps(raw).encode().ljust(size - HEADER_BYTES, b"\0"))
    area[448:512] = bytes(64)
    area[448:480] = hashlib.sha256(area).digest()
    return bytes(area)


def test_luks1(luks1: bytes) -> None:
    assert uuid_of(luks1[:HEADER_BYTES]) == UUID
    wanted = Volume(
        cipher="aes-cbc-essiv:sha256", key_bytes=32, offset_bytes=2 * MIB, size_bytes=None, iv_sectors=0,
        sector_bytes=512,
    )  # fmt: skip
    assert read_volume(reader(luks1), UUID) == wanted


def test_luks2(luks2: bytes) -> None:
    assert uuid_of(luks2[:HEADER_BYTES]) == UUID
    wanted = Volume(
        cipher="aes-xts-plain64", key_bytes=64, offset_bytes=16 * MIB, size_bytes=None, iv_sectors=0,
        sector_bytes=4096,
    )  # fmt: skip
    assert read_volume(reader(luks2), UUID) == wanted


def test_a_segment_with_a_size_and_a_tweak(luks2: bytes) -> None:
    data = changed(luks2, lambda raw: raw["segments"]["0"].update(size="1048576", iv_tweak="8"))
    volume = read_volume(reader(data), UUID)
    assert (volume.size_bytes, volume.iv_sectors) == (MIB, 8)


def test_another_device_is_not_it(luks2: bytes) -> None:
    assert uuid_of(bytes(HEADER_BYTES)) is None
    assert uuid_of(luks2[:512]) is None
    with pytest.raises(TargetError, match="no LUKS header at its beginning"):
        read_volume(reader(bytes(MIB)), UUID)
    with pytest.raises(TargetError, match="no LUKS header at its beginning"):
        read_volume(reader(luks2), UUID.replace("a", "b"))


def test_damage_anywhere_in_the_header_is_seen(luks2: bytes) -> None:
    """But for the UUID and the magic, which make it another device."""
    for at in (6, 9, 16, 24, 72, 104, 300, 448, 460, 600, 4096, 5000, 16000):
        data = bytearray(luks2)
        data[at] ^= 0x10
        with pytest.raises(KdumpError, match=r"damaged|version"):
            read_volume(reader(bytes(data)), UUID)


@pytest.mark.parametrize("end", [0, 100, 4095, 4096, 8000, 16383])
def test_a_header_that_is_cut(luks1: bytes, luks2: bytes, end: int) -> None:
    with pytest.raises(TargetError):
        read_volume(reader(luks2[:end]), UUID)
    if end < HEADER_BYTES:
        with pytest.raises(TargetError):
            read_volume(reader(luks1[:end]), UUID)


def _two_segments(raw: dict[str, Any]) -> None:
    raw["segments"]["1"] = dict(raw["segments"]["0"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}), "online-reencrypt-v2"),
        (_two_segments, "2 segments"),
        (lambda raw: raw["segments"]["0"].update(type="hw-opal-crypt"), "hw-opal-crypt"),
        (lambda raw: raw["segments"]["0"].update(integrity={"type": "hmac(sha256)"}), "integrity"),
        (lambda raw: raw["digests"]["0"].update(keyslots=[]), "no key slot"),
        (lambda raw: raw["segments"]["0"].update(encryption="aes xts\n0 1 zero"), "in a way"),
        (lambda raw: raw["segments"]["0"].update(sector_size=3000), "in a way"),
        (lambda raw: raw["segments"]["0"].update(offset="0"), "in a way"),
        (lambda raw: raw["keyslots"]["0"].update(key_size=5000), "in a way"),
    ],
)
def test_what_only_cryptsetup_opens_is_refused(
    luks2: bytes, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read_volume(reader(changed(luks2, change)), UUID)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("segments"),
        lambda raw: raw.update(segments=[]),
        lambda raw: raw.update(config=7),
        lambda raw: raw["segments"].update({"0": "x"}),
        lambda raw: raw["segments"]["0"].update(size="soon"),
        lambda raw: raw["segments"]["0"].update(encryption=None),
        lambda raw: raw["digests"]["0"].update(keyslots=["9"]),
    ],
)
def test_json_that_is_not_a_header(luks2: bytes, change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(KdumpError):
        read_volume(reader(changed(luks2, change)), UUID)
