# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading with kexec-tools, for kernels without kexec_file_load(2) and for who asks for kexec_load(2).

Its word is not taken for it: what it prepared is looked at, and taken out again when no capture kernel could use it.
Source: kexec(8), kexec/kexec.c of kexec-tools.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

from kdumpd.errors import LoadError, LoadLostError, UnsupportedError
from kdumpd.host.core_header import header_problems, parse_complaints, parse_guesses, parse_headers
from kdumpd.host.files import read_text
from kdumpd.host.kexec import read_loaded
from kdumpd.host.kexec_checks import check_pair
from kdumpd.host.kexec_errors import load_error
from kdumpd.host.kexec_pair import OpenPair
from kdumpd.host.reservation import parse_iomem
from kdumpd.host.security import read_security

_PLACES = ("/usr/sbin/kexec", "/sbin/kexec")
_SECONDS = 300
# "kexec_load failed: Cannot assign requested address"
_FAILED = re.compile(r"^kexec_load failed: (.+)$", re.MULTILINE)
_NO_CORE_HEADER = frozenset({"s390x"})  # there the capture kernel makes it


class ToolLoader:
    """Loads with `kexec -p --kexec-syscall`. `program` is only another one in tests."""

    def __init__(self, arch: str, *, root: Path = Path("/"), program: str | None = None) -> None:
        self._arch = arch
        self._root = root
        self._program = program or next((place for place in _PLACES if os.access(place, os.X_OK)), None)

    def load(self, opened: OpenPair) -> None:
        """Checks kernel and image, has them loaded, and looks at the core header that the capture kernel will get.

        Raises LoadError, or UnsupportedError when kexec-tools is not installed.
        """
        if self._program is None:
            raise UnsupportedError(
                "kexec-tools, which loads with kexec_load(2), is not installed", hint="apt install kexec-tools"
            )
        security = read_security(self._root)
        if security.lockdown not in (None, "none"):
            raise LoadError(
                f"The kernel is locked down ({security.lockdown}) and refuses kexec_load(2)",
                hint="set kexec_syscall to kexec_file_load in /etc/kdump.conf",
                errno=errno.EPERM,
            )
        check_pair(opened, self._arch, self._root)
        said = self._run(opened, self._program)
        if not read_loaded(self._root):
            raise LoadError("kexec ended well, yet the kernel says that none is loaded", hint="journalctl -k")
        problem = self._problem(said)
        if problem is not None:
            # Worse than nothing: it would be called armed, and no dump would come.
            self._call([self._program, "-p", "-u"], ())
            sentence = f"kexec-tools made a core header that no capture kernel can read: {problem}"
            if read_loaded(self._root):
                raise LoadLostError(f"{sentence}; and it could not be unloaded", hint="kexec -p -u")
            raise LoadError(sentence, hint="use a kernel with kexec_file_load, or a newer kexec-tools")

    def _run(self, opened: OpenPair, program: str) -> str:
        pair = opened.pair
        words = [program, "-d", "-p", "--kexec-syscall", f"/proc/self/fd/{opened.kernel_fd}"]
        words += [f"--initrd=/proc/self/fd/{opened.initrd_fd}", f"--command-line={pair.cmdline}"]
        done = self._call(words, (opened.kernel_fd, opened.initrd_fd))
        said = done.stdout + done.stderr
        if done.returncode == 0:
            return said
        failed = _FAILED.search(said)
        code = _errno(failed[1]) if failed else None
        if code is not None:
            raise load_error(code, read_security(self._root), syscall="kexec_load")
        last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        why = "; ".join(dict.fromkeys([*parse_complaints(said), last]))
        raise LoadError(f"kexec failed with status {done.returncode}: {why}", hint="journalctl -k")

    def _call(self, words: list[str], fds: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
                check=False, pass_fds=fds, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            )  # fmt: skip
        except OSError as error:
            raise LoadError(f"kexec cannot be run: {error}", hint="apt install --reinstall kexec-tools") from error
        except subprocess.TimeoutExpired as error:
            raise LoadLostError(f"kexec was ended after {_SECONDS} s", hint="journalctl -k") from error

    def _problem(self, said: str) -> str | None:
        if self._arch in _NO_CORE_HEADER:
            return None
        iomem = read_text(self._root, "/proc/iomem") or ""
        ram = parse_iomem(iomem, "System RAM")
        if not ram:
            return "it cannot be compared with /proc/iomem, which shows no addresses to this process"
        problems = header_problems(parse_headers(said), ram, parse_iomem(iomem, "Crash kernel"))
        return next(iter((*parse_guesses(said), *problems)), None)


def _errno(words: str) -> int | None:
    """The number of an error from the words of strerror(3)."""
    return next((code for code in errno.errorcode if os.strerror(code) == words.strip()), None)
