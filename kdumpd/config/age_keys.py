# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of age(1) as people write them: `age1...` is public, `AGE-SECRET-KEY-1...` is not.

Both are 32 bytes of X25519 in Bech32 (BIP 173, without its limit on length), as the format's specification has it
(C2SP, age). Only text is looked at here: kdump.conf is checked where no cryptographic library is installed, too.
"""

from __future__ import annotations

KEY_SIZE = 32
MAX_RECIPIENTS = 64

_PUBLIC = "age"
_SECRET = "AGE-SECRET-KEY-"
_CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_SIZE = 6
_MAKE_ONE = "age-keygen makes a pair"

# u-coordinates of small order: what is encrypted to one of them can be read by anybody (RFC 7748, section 6.1).
_P = 2**255 - 19
_SMALL_ORDER = frozenset({
    0,
    1,
    _P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
})  # fmt: skip


def _checksum(prefix: str, values: list[int]) -> int:
    """1 for a prefix and values, checksum included, that belong together."""
    low = prefix.lower()
    found = 1
    for value in (*(ord(char) >> 5 for char in low), 0, *(ord(char) & 31 for char in low), *values):
        top = found >> 25
        found = (found & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate(_GENERATOR):
            if top >> bit & 1:
                found ^= term
    return found


def _decode(text: str, prefix: str) -> bytes:
    """The bytes of a Bech32 string, whose case is that of `prefix`. Raises ValueError with the reason."""
    data = text[len(prefix) + 1 :]
    data = data.lower() if prefix.isupper() and data.isupper() else data
    wrong = next((char for char in data if char not in _CHARACTERS), None)
    if wrong is not None:
        raise ValueError(f"the character '{wrong}' is in no key")
    values = [_CHARACTERS.index(char) for char in data]
    size = -(-KEY_SIZE * 8 // 5) + _CHECKSUM_SIZE
    if len(values) != size:
        raise ValueError(f"it has {len(text)} characters and not {len(prefix) + 1 + size}")
    if _checksum(prefix, values) != 1:
        raise ValueError("its checksum is wrong, so a character is another one")
    number = 0
    for value in values[:-_CHECKSUM_SIZE]:
        number = number << 5 | value
    padding = (size - _CHECKSUM_SIZE) * 5 - KEY_SIZE * 8
    if number & (1 << padding) - 1:
        raise ValueError("its last bits are not zero")
    return (number >> padding).to_bytes(KEY_SIZE, "big")


def _encode(key: bytes, prefix: str) -> str:
    bits = int.from_bytes(key, "big")
    count = -(-KEY_SIZE * 8 // 5)
    bits <<= count * 5 - KEY_SIZE * 8
    values = [bits >> 5 * index & 31 for index in reversed(range(count))]
    check = _checksum(prefix, [*values, *[0] * _CHECKSUM_SIZE]) ^ 1
    values += [check >> 5 * index & 31 for index in reversed(range(_CHECKSUM_SIZE))]
    text = prefix.lower() + "1" + "".join(_CHARACTERS[value] for value in values)
    return text.upper() if prefix.isupper() else text


def recipient_key(text: str) -> bytes:
    """The 32 bytes of the public key `age1...`. Raises ValueError with a sentence, which repeats no private key."""
    if text.upper().startswith(_SECRET):
        raise ValueError("this is a private key, which must not be here; `age-keygen -y FILE` prints the public one")
    if text.startswith(("ssh-", "age1pq1")) or (text.startswith("age1") and "1" in text[4:]):
        kind = "a key of ssh" if text.startswith("ssh-") else "a key of another kind (a plugin's or post-quantum)"
        raise ValueError(f"'{text}' is {kind}; only X25519 keys of age are taken, {_MAKE_ONE}")
    if not text.startswith(_PUBLIC + "1"):
        raise ValueError(f"'{text}' is no public key of age, which begins with age1; {_MAKE_ONE}")
    try:
        key = _decode(text, _PUBLIC)
    except ValueError as error:
        raise ValueError(f"'{text}' is no public key of age: {error}") from None
    if (int.from_bytes(key, "little") & 2**255 - 1) % _P in _SMALL_ORDER:
        raise ValueError(f"'{text}' is no key to encrypt to: anybody could read it; {_MAKE_ONE}")
    return key


def recipient_keys(text: str) -> tuple[str, ...]:
    """The public keys in `text`, one or more words, each once. Raises ValueError with a sentence for the first that is
    none."""
    words = tuple(dict.fromkeys(text.split()))
    for word in words:
        recipient_key(word)
    if len(words) > MAX_RECIPIENTS:
        raise ValueError(f"{len(words)} keys are too many to encrypt to, {MAX_RECIPIENTS} are the most")
    return words


def identity_key(text: str) -> bytes:
    """The 32 bytes of the private key `AGE-SECRET-KEY-1...`. Raises ValueError with the reason, without the key."""
    if not text.startswith(_SECRET + "1"):
        raise ValueError("it does not begin with AGE-SECRET-KEY-1")
    return _decode(text, _SECRET)


def recipient_text(key: bytes) -> str:
    """How the public key is written."""
    return _encode(key, _PUBLIC)


def identity_text(key: bytes) -> str:
    """How the private key is written."""
    return _encode(key, _SECRET)
