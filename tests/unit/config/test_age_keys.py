# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of age as text: what age-keygen writes is read, and what was mistyped is told from it."""

from __future__ import annotations

import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from kdumpd.config.age_keys import (
    MAX_RECIPIENTS,
    identity_key,
    identity_text,
    recipient_key,
    recipient_keys,
    recipient_text,
)

P = 2**255 - 19
# The points of which libsodium and RFC 7748 warn, with and without the bit that is not looked at.
SMALL_ORDER = (
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (P - 1).to_bytes(32, "little"),
    P.to_bytes(32, "little"),
    (P + 1).to_bytes(32, "little"),
)


@pytest.fixture(scope="module")
def pair() -> tuple[str, str]:
    """A key that age-keygen made: public, private."""
    done = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True)
    return done.stderr.split()[-1], done.stdout.splitlines()[-1]


def test_a_pair_of_age_keygen_belongs_together(pair: tuple[str, str]) -> None:
    public, private = pair
    assert recipient_text(recipient_key(public)) == public
    assert identity_text(identity_key(private)) == private
    key = X25519PrivateKey.from_private_bytes(identity_key(private)).public_key()
    assert key.public_bytes(Encoding.Raw, PublicFormat.Raw) == recipient_key(public)


@given(st.binary(min_size=32, max_size=32))
def test_any_key_survives_being_written(key: bytes) -> None:
    assert identity_key(identity_text(key)) == key
    done = subprocess.run(["age-keygen", "-y"], input=identity_text(key), capture_output=True, text=True, check=True)
    public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert done.stdout.strip() == recipient_text(public)


def test_every_mistyped_character_is_noticed(pair: tuple[str, str]) -> None:
    public, private = pair
    for at in range(len(public)):
        for char in "q1bQ-é":
            if public[at] != char:
                with pytest.raises(ValueError, match=r"^'[^']*' is "):
                    recipient_key(public[:at] + char + public[at + 1 :])
        with pytest.raises(ValueError, match=r"is no public key|another kind"):
            recipient_key(public[:at] + public[at + 1 :])
    for at in range(len("AGE-SECRET-KEY-1"), len(private)):
        wrong = "Q" if private[at] != "Q" else "P"
        with pytest.raises(ValueError, match="checksum"):
            identity_key(private[:at] + wrong + private[at + 1 :])


def test_a_private_key_is_not_repeated(pair: tuple[str, str]) -> None:
    for text in (pair[1], pair[1].lower()):
        with pytest.raises(ValueError, match="a private key") as caught:
            recipient_keys(text)
        assert pair[1].lower()[20:] not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ssh-ed25519", "is a key of ssh"),
        ("age1pq1qqqq", "another kind"),
        ("age1yubikey1qqqq", "another kind"),
        ("/etc/key.txt", "which begins with age1"),
        ("age1", "it has 4 characters and not 62"),
        ("AGE1QQQQ", "which begins with age1"),
    ],
)
def test_other_things_are_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recipient_keys(text)


def test_several_keys_count_once_each(pair: tuple[str, str]) -> None:
    other = recipient_text(bytes([9, *range(31)]))
    assert recipient_keys(f"{pair[0]}  {other} {pair[0]}") == (pair[0], other)
    many = " ".join(recipient_text(bytes([9, *range(30), number])) for number in range(MAX_RECIPIENTS + 1))
    with pytest.raises(ValueError, match="too many"):
        recipient_keys(many)


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order_are_refused(point: bytes) -> None:
    for key in (point, point[:31] + bytes([point[31] | 0x80])):
        with pytest.raises(ValueError, match="shared key"):
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
        with pytest.raises(ValueError, match="anybody could read it"):
            recipient_key(recipient_text(key))
