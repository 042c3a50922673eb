# SPDX-License-Identifier: GPL-2.0-or-later
"""With little memory left the collector takes less, and writes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import OLD, PAGE, FakeKernel

from kdumpd.collector.scarce import SCARCE_BYTES, VERY_SCARCE_BYTES

TOP = Path(__file__).resolve().parents[3]
PLENTY = 1 << 40
SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
from kdumpd.collector.lean import without_unused_parts
from kdumpd.collector.scarce import spare_memory
available = int(sys.argv[1])
without_unused_parts()
spare_memory(available)
from kdumpd.collector import copy
from kdumpd.collector.__main__ import main
copy.available_memory = lambda: available
with contextlib.redirect_stdout(io.StringIO()) as said:
    status = main(["-z", "-d", "31", "--json", "--num-threads", "1", sys.argv[2], sys.argv[3]])
import hashlib, numpy as np
def resident():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
before = resident()
for _ in range(2):
    arrays = [np.ones(1 << 20, dtype=np.uint8) for _ in range(8)]
    end = bytearray(100 << 10)
    del arrays
print(json.dumps({"status": status, "kept_kib": resident() - before, "openssl": "openssl" in hashlib.sha256.__name__}))
"""


def collect(available: int, core: Path, out: Path) -> Any:
    """The collector as a process that was told how much memory is available."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(available), str(core), str(out)],
        cwd=TOP, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_less_memory_makes_the_same_dump(tmp_path: Path) -> None:
    kernel = FakeKernel(OLD)
    kernel.memory[0x300 * PAGE : 0x340 * PAGE] = os.urandom(0x40 * PAGE)
    core = kernel.write(tmp_path / "core")
    dumps, kept = [], []
    for available in (PLENTY, SCARCE_BYTES - 1, VERY_SCARCE_BYTES - 1, 1 << 20):
        out = tmp_path / f"out-{available}"
        found = collect(available, core, out)
        assert found["status"] == 0
        dumps.append(out.read_bytes())
        kept.append(found["kept_kib"])
    assert all(dump == dumps[0] for dump in dumps)
    # Of 8 MiB that were freed.
    assert kept[0] > 6 << 10
    assert max(kept[1:]) < 2 << 10


@pytest.mark.parametrize(
    ("available", "openssl"), [(PLENTY, True), (VERY_SCARCE_BYTES, True), (VERY_SCARCE_BYTES - 1, False)]
)
def test_openssl_is_left_out_where_nothing_else_helps(available: int, openssl: bool, tmp_path: Path) -> None:
    core = FakeKernel(OLD).write(tmp_path / "core")
    assert collect(available, core, tmp_path / "out")["openssl"] is openssl
