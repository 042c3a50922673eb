# SPDX-License-Identifier: GPL-2.0-or-later
"""A private apt for the guests' suite, so that the host may be another Debian than the guest.

Mirrors come from the host's own apt configuration. The host's sources, lists and packages stay untouched.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CACHE = Path.home() / ".cache" / "kdumpd"
KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
LISTS_GOOD_FOR_S = 24 * 3600
UPDATE_TIMEOUT_S = 300
DOWNLOAD_TIMEOUT_S = 1200


class LabError(Exception):
    """The laboratory itself failed: neither a pass nor a finding about kdumpd."""


def run(argv: list[str], *, timeout: float, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a program and returns its stdout; raises LabError with its last words when it fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env=env,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


# A mirror that stands still for a while is still signed: its lists of a testing suite expire within days.
KEEPS_OLD_LISTS = 'Acquire::Check-Valid-Until "false"'


def mirrors() -> tuple[str, str]:
    """The URIs of the Debian archive and of its security archive, as the host's apt knows them.

    A host without a security source gets it by the layout that Debian's mirrors share:
    .../debian-security/ beside .../debian/.
    """
    text = run(["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"], timeout=60)
    known = dict(reversed([line.split("|", 1) for line in text.splitlines() if "|" in line]))
    if "Debian" not in known:
        raise LabError("apt knows no Debian archive: run apt-get update, then apt-get indextargets must list one")
    main = known["Debian"]
    return main, known.get("Debian-Security", main.rstrip("/").removesuffix("/debian") + "/debian-security/")


def source_lines(suite: str) -> list[str]:
    """One-line apt sources for `suite` with its updates and security."""
    main, security = mirrors()
    key = next((f"[signed-by={path}] " for path in KEYRINGS if Path(path).exists()), "")
    return [
        f"deb {key}{main} {suite} main",
        f"deb {key}{main} {suite}-updates main",
        f"deb {key}{security} {suite}-security main",
    ]


class AptRoot:
    """apt's view of one suite, kept below the cache. Many processes may ask it at once; they wait while it changes."""

    def __init__(self, suite: str, architecture: str = "amd64") -> None:
        self.suite = suite
        self.architecture = architecture
        self.root = CACHE / "apt" / (suite if architecture == "amd64" else f"{suite}-{architecture}")
        for name in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.sources = source_lines(suite)
        self._refresh()

    def _options(self) -> list[str]:
        root = self.root
        settings = {
            "Dir::State": root / "state",
            "Dir::State::status": root / "status",
            "Dir::Cache": root / "cache",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "Dir::Etc::sourcelist": root / "etc" / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferencesparts": "-",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::Check-Valid-Until": "false",
            "APT::Sandbox::User": "root",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def _refresh(self) -> None:
        stamp = self.root / "updated"
        listed = self.root / "etc" / "sources.list"
        wanted = "".join(line + "\n" for line in self.sources)
        with self._locked(fcntl.LOCK_EX):
            fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_GOOD_FOR_S
            if fresh and listed.exists() and listed.read_text() == wanted:
                return
            (self.root / "status").touch()
            listed.write_text(wanted)
            run(["apt-get", *self._options(), "update", "-qq"], timeout=UPDATE_TIMEOUT_S)
            stamp.touch()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, how)
            yield

    def _apt(self, program: str, *words: str, timeout: float, cwd: Path | None = None) -> str:
        """What an apt program says of lists that nobody changes meanwhile."""
        with self._locked(fcntl.LOCK_SH):
            return run([program, *self._options(), *words], timeout=timeout, cwd=cwd)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """The versions that apt would install, by package."""
        text = self._apt("apt-cache", "policy", *packages, timeout=60)
        found: dict[str, str] = {}
        package = ""
        for line in text.splitlines():
            if not line.startswith(" "):
                package = line.rstrip(":")
            word, _, value = line.strip().partition(": ")
            if word == "Candidate" and value != "(none)":
                found[package] = value
        if missing := set(packages) - set(found):
            raise LabError(f"{self.suite} has no package {', '.join(sorted(missing))}")
        return found

    def needs(self, package: str, prefix: str) -> list[str]:
        """`package` and all that it depends on, directly or not, as far as the names begin with `prefix`."""
        text = self._apt("apt-cache", "depends", "--recurse", "--important", package, timeout=60)
        return [line for line in text.splitlines() if line.startswith(prefix)]

    def download(self, package: str, folder: Path) -> Path:
        """Fetches the .deb of `package` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            self._apt("apt-get", "download", "-qq", package, timeout=DOWNLOAD_TIMEOUT_S, cwd=Path(scratch))
            (found,) = Path(scratch).glob("*.deb")
            return found.rename(folder / found.name)

    def download_missing(self, packages: Sequence[str], status: Path, folder: Path) -> list[Path]:
        """Fetches the .debs of `packages` and of all that they depend on and that `status` (dpkg's file) does not have,
        into `folder`."""
        (folder / "partial").mkdir(parents=True)
        settings = [f"Dir::State::status={status}", f"Dir::Cache::archives={folder}"]
        options = [word for each in settings for word in ("-o", each)]
        what = ["install", "-qq", "-y", "--download-only", "--no-install-recommends", *packages]
        self._apt("apt-get", *options, *what, timeout=DOWNLOAD_TIMEOUT_S)
        return sorted(folder.glob("*.deb"))
