# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of an age file, version 1: for whom it is, and the key of the file wrapped for each of them.

    age-encryption.org/v1
    -> X25519 <share>
    <wrapped file key>
    --- <MAC over all before>

then the payload (dumpfile.sealed). The format is C2SP's "age", the primitives are those of python3-cryptography, which
is only imported where something is encrypted or decrypted: it costs the capture kernel 7 MiB.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hmac
import os
import re
from collections.abc import Sequence

from kdumpd.config.age_keys import KEY_SIZE
from kdumpd.dumpfile.stored import AGE_VERSION, is_encrypted
from kdumpd.errors import DumpFormatError, NotFoundError, UnsupportedError

MAX_HEADER = 64 << 10
FILE_KEY_SIZE = 16
TAG_SIZE = 16

_STANZA = b"-> "
_FOOTER = b"---"
_X25519 = "X25519"
_WRAP_INFO = b"age-encryption.org/v1/X25519"
_COLUMNS = 64
_ARGUMENT = re.compile(rb"[!-~]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Stanza:
    """One wrapping of the file key: `words` say how and for whom, `body` is the wrapped key."""

    words: tuple[str, ...]
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that was read. `covered` is what its `mac` is of; it takes the first `size` bytes of the file."""

    stanzas: tuple[Stanza, ...]
    covered: bytes
    mac: bytes
    size: int


def need_library() -> None:
    """Raises UnsupportedError where python3-cryptography is missing or does not load."""
    # Its OpenSSL would otherwise want the provider of ciphers that are long out of use, a file more for the image.
    os.environ.setdefault("CRYPTOGRAPHY_OPENSSL_NO_LEGACY", "1")
    try:
        import cryptography.hazmat.primitives.ciphers.aead
        import cryptography.hazmat.primitives.kdf.hkdf  # noqa: F401  # both are used below
    except Exception as error:  # a library that OpenSSL lacks raises what the module itself has no name for
        reason = str(error).partition(". ")[0]
        raise UnsupportedError(
            f"nothing can be encrypted or decrypted without the Python module cryptography: {reason}",
            hint="install python3-cryptography",
        ) from error


def derive_key(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes by HKDF with SHA-256 (RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def make_header(file_key: bytes, recipients: Sequence[bytes]) -> bytes:
    """A header with which each of `recipients`, 32 bytes of an X25519 public key each, finds `file_key`.

    Raises ValueError for a key of small order, which config.age_keys does not let through.
    """
    if not recipients:
        raise ValueError("there is nobody to encrypt to")
    lines = [AGE_VERSION]
    for recipient in recipients:
        share, body = _wrap(file_key, recipient)
        lines += [_STANZA + b"X25519 " + _base64(share), _base64(body)]
    covered = b"\n".join([*lines, _FOOTER])
    return covered + b" " + _base64(_mac(file_key, covered)) + b"\n"


def read_header(data: bytes, source: str) -> Header:
    """The header at the beginning of `data`, which holds MAX_HEADER bytes, or the file if that is shorter.

    Raises DumpFormatError naming `source`.
    """
    if not is_encrypted(data):
        raise DumpFormatError(f"{source} is not encrypted with age")
    at = len(AGE_VERSION) + 1
    stanzas: list[Stanza] = []
    while True:
        line, after = _line(data, at, source)
        if line.startswith(_FOOTER):
            break
        words = line[len(_STANZA) :].split(b" ")
        if not line.startswith(_STANZA) or not all(_ARGUMENT.fullmatch(word) for word in words):
            raise _bad(source)
        body = b""
        while True:
            line, after = _line(data, after, source)
            body += _from_base64(line, source)
            if len(line) > _COLUMNS:
                raise _bad(source)
            if len(line) < _COLUMNS:
                break
        stanzas.append(Stanza(tuple(word.decode("ascii") for word in words), body))
        at = after
    if not line.startswith(_FOOTER + b" ") or not stanzas:
        raise _bad(source)
    mac = _from_base64(line[len(_FOOTER) + 1 :], source)
    if len(mac) != 32:
        raise _bad(source)
    return Header(stanzas=tuple(stanzas), covered=data[: at + len(_FOOTER)], mac=mac, size=after)


def find_file_key(header: Header, identities: Sequence[bytes], source: str) -> bytes:
    """The key of the file, by the first of `identities`, 32 bytes of an X25519 private key each, that fits.

    Raises NotFoundError when none does, DumpFormatError when the header is damaged.
    """
    shares = [_share(stanza, source) for stanza in header.stanzas if stanza.words[0] == _X25519]
    for identity in identities:
        for share, body in shares:
            file_key = _unwrap(identity, share, body)
            if file_key is not None:
                check_header(header, file_key, source)
                return file_key
    if not shares:
        kinds = ", ".join(sorted({stanza.words[0] for stanza in header.stanzas}))
        raise NotFoundError(f"{source} was not encrypted to a key of age but by {kinds}", hint="age -d decrypts it")
    raise NotFoundError(
        f"{source} was not encrypted to any of these keys",
        hint="the public keys are in manifest.json; `age-keygen -y FILE` prints that of a private one",
    )


def check_header(header: Header, file_key: bytes, source: str) -> None:
    """Raises DumpFormatError unless the header is what it was when it was written."""
    if not hmac.compare_digest(_mac(file_key, header.covered), header.mac):
        raise DumpFormatError(f"the header of {source} is damaged: its checksum is wrong")


def public_key(private: bytes) -> bytes:
    """The public key of a private one, 32 bytes each."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = X25519PrivateKey.from_private_bytes(private)
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _wrap(file_key: bytes, recipient: bytes) -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    # Random bytes of the kernel, not of a generator that a library has to seed first.
    ephemeral = os.urandom(KEY_SIZE)
    share = public_key(ephemeral)
    private = X25519PrivateKey.from_private_bytes(ephemeral)
    secret = private.exchange(X25519PublicKey.from_public_bytes(recipient))
    key = derive_key(secret, share + recipient, _WRAP_INFO)
    return share, ChaCha20Poly1305(key).encrypt(bytes(12), file_key, None)


def _unwrap(identity: bytes, share: bytes, body: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    private = X25519PrivateKey.from_private_bytes(identity)
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(share))
        key = derive_key(secret, share + public_key(identity), _WRAP_INFO)
        return ChaCha20Poly1305(key).decrypt(bytes(12), body, None)
    except (InvalidTag, ValueError):  # for somebody else, or a share of small order
        return None


def _share(stanza: Stanza, source: str) -> tuple[bytes, bytes]:
    if len(stanza.words) != 2 or len(stanza.body) != FILE_KEY_SIZE + TAG_SIZE:
        raise _bad(source)
    share = _from_base64(stanza.words[1].encode(), source)
    if len(share) != KEY_SIZE:
        raise _bad(source)
    return share, stanza.body


def _mac(file_key: bytes, covered: bytes) -> bytes:
    return hmac.digest(derive_key(file_key, b"", b"header"), covered, "sha256")


def _line(data: bytes, at: int, source: str) -> tuple[bytes, int]:
    """The line at `at`, and where the next one begins."""
    end = data.find(b"\n", at)
    if end < 0:
        what = "is longer than any header" if len(data) >= MAX_HEADER else "ends inside its header"
        raise DumpFormatError(f"{source} {what}")
    return data[at:end], end + 1


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _from_base64(text: bytes, source: str) -> bytes:
    """Without padding, and in the one way in which these bytes are written."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _bad(source) from None
    if _base64(data) != text:
        raise _bad(source)
    return data


def _bad(source: str) -> DumpFormatError:
    return DumpFormatError(f"the header of {source} is damaged")
