# SPDX-License-Identifier: GPL-2.0-or-later
"""units/: systemd takes them, and they stay as hardened as they are."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[3] / "units"
INSTALL = Path(__file__).resolve().parents[3] / "packaging/debian/install"

# Tenths of the exposure that `systemd-analyze security` may find.
LIMITS = {
    "kdumpd.service": 15,
    "kdumpd-load@.service": 20,
    "kdumpd-load-keys@.service": 20,
    "kdumpd-load-tool@.service": 20,
    "kdumpd-build@.service": 30,
    "kdumpd-test-crash.service": 20,
    "kdumpd-recover.service": 20,
    "kdumpd-test-target.service": 30,
}


def _sections(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # directives keep their case
    parser.read(UNITS / name)
    return parser


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that exists on a machine without the package."""
    for path in UNITS.glob("kdumpd*.s*"):
        (tmp_path / path.name).write_text(path.read_text().replace("ExecStart=/usr/bin/kdumpd", "ExecStart=/bin/true"))
    return tmp_path


def test_each_service_has_its_limit() -> None:
    peoples_own_programs = "kdumpd-on-crash@.service"  # which may do whatever they were written for
    assert {path.name for path in UNITS.glob("kdumpd*.service")} == {*LIMITS, peoples_own_programs}


def test_systemd_takes_the_units(units: Path) -> None:
    paths = [str(path).replace("@.", "@6.1.0.") for path in sorted(units.iterdir())]
    for path in units.glob("*@.service"):
        shutil.copy(path, str(path).replace("@.", "@6.1.0."))
    words = ["systemd-analyze", "--man=no", "--recursive-errors=no", "verify", *paths]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kdumpd" not in done.stderr, done.stderr


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_the_units_stay_hardened(units: Path, name: str, limit: int) -> None:
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}", str(units / name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:]


def test_the_limit_is_one_that_can_be_missed(units: Path) -> None:
    path = units / "kdumpd.service"
    path.write_text(path.read_text().replace("NoNewPrivileges=yes", "").replace("ProtectSystem=strict", ""))
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(path)]
    assert subprocess.run(words, capture_output=True, check=False).returncode != 0


def test_the_daemon_keeps_what_matters() -> None:
    parser = _sections("kdumpd.service")
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["StateDirectoryMode"] == "0700"
    assert "ConditionKernelCommandLine" not in parser["Unit"]
    assert "ProtectKernelModules" not in service
    assert not [key for key in service if key.startswith("ExecStop")]
    assert parser["Install"]["Alias"] in (UNITS / "org.kdumpd.Kdump1.service").read_text()


def test_only_the_loaders_may_load() -> None:
    for name in LIMITS:
        text = (UNITS / name).read_text()
        may = "load" in name
        assert (re.search(r"^CapabilityBoundingSet=.*\bCAP_SYS_BOOT\b", text, re.M) is not None) == may, name
        assert (re.search(r"^SystemCallFilter=.*\bkexec_file_load\b", text, re.M) is not None) == may, name
    assert _sections("kdumpd-load@.service")["Service"]["CapabilityBoundingSet"] == "CAP_SYS_BOOT"


@pytest.mark.parametrize("name", ["kdumpd-load", "kdumpd-load-keys", "kdumpd-load-tool"])
def test_only_root_reaches_the_loaders(name: str) -> None:
    listening = _sections(f"{name}.socket")["Socket"]
    assert listening["SocketMode"] == "0600"
    assert listening["ListenSequentialPacket"] == f"/run/kdumpd/{name.removeprefix('kdumpd-')}.socket"
    assert f"{name}.socket" in (UNITS / "kdumpd.service").read_text()


def test_the_package_brings_all_units() -> None:
    installed = INSTALL.read_text()
    for path in UNITS.glob("kdumpd-*.s*"):
        assert f"units/{path.name} usr/lib/systemd/system\n" in installed


def test_loosened_directives_are_explained() -> None:
    """What could be tighter says why it is not."""
    for name in LIMITS:
        text = (UNITS / name).read_text()
        for directive in ("PrivateUsers", "ProtectKernelModules", "PrivateDevices"):
            comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
            assert f"\n{directive}=yes" in text or directive in comments, (name, directive)
