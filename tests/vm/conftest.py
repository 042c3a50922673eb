# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of whole machines share: an image with the package of this checkout."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import image, prepare
from lab.console import MachineLostError

# What takes minutes begins first, so that no worker waits for another one at the end.
_LONG = ("test_upgrade", "test_service", "test_board", "test_capture", "test_faults", "test_processes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests of whole machines by how long they take, roughly."""
    names = [*_LONG, ""]
    items.sort(key=lambda item: names.index(item.path.stem if item.path.stem in _LONG else ""))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    """Runs a test once more when QEMU itself died under it, which QEMU 10.0 does now and then as a guest reboots.

    Nothing else is tried twice: whatever the guest or kdumpd does wrong fails at once.
    """
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    try:
        pyfuncitem.obj(**arguments)
    except MachineLostError as error:
        warnings.warn(f"{pyfuncitem.name} runs again: {str(error)[:300]}", stacklevel=1)
        pyfuncitem.obj(**arguments)
    return True


@pytest.fixture(scope="session")
def made() -> image.Image:
    """The disk image with kdumpd installed; tests/run has built the package right before."""
    packages = sorted((prepare.TOP / "build" / "deb").glob("kdumpd_*_all.deb"))
    return image.with_package(packages[-1] if packages and "PYTEST_XDIST_WORKER" in os.environ else prepare.package())


@pytest.fixture
def scratch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder for disks, emptied of what is large; console logs go to build/vm for whoever looks into a failure."""
    yield tmp_path
    kept = prepare.TOP / "build" / "vm"
    kept.mkdir(parents=True, exist_ok=True)
    for path in tmp_path.iterdir():
        if path.suffix == ".log":
            path.replace(kept / f"{request.node.name}-{path.name}")
        elif path.is_file():
            path.unlink()
