# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's keyrings, in processes of their own: this kernel's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]

# add_key(2) and keyctl(2) by hand, in a keyring that ends with the process.
_PROGRAM = """
import ctypes, os, sys
from kdumpd.config import keyring
libc = ctypes.CDLL(None, use_errno=True)
add = {"x86_64": 248}.get(os.uname().machine, 217)
name = keyring.description("kdumpd-test-%d" % os.getpid())
assert not keyring.has_logon_key(name)
key = libc.syscall(add, b"logon", name.encode(), b"canary" * 4, 24, -4)
assert key > 0, ctypes.get_errno()
try:
    assert keyring.has_logon_key(name)
    assert not keyring.has_logon_key(name + "x")
    keyring.use_root_keys()
    assert keyring.has_logon_key(name)
    text = open("/proc/keys").read()
finally:
    keyring._keyctl(9, key, -4)  # unlink
assert not keyring.has_logon_key(name)
from kdumpd.host.crypt_keys import parse_keys
assert name in parse_keys(text), text
print("done")
"""


def test_a_key_of_roots_is_found() -> None:
    words = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
