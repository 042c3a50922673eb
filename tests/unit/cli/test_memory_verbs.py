# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl estimate, showmem, get-default-crashkernel, reset-crashkernel, reservation."""

from __future__ import annotations

import argparse
import json
import re

import pytest
from ctl import kdumpctl, kdumpctl_as_nobody
from engine_bench import Bench
from fake_machine import MIB, RELEASE, UUID, FakeMachine

from kdumpd.cli import memory
from kdumpd.errors import DeniedError, KdumpError
from kdumpd.host import bootloader


def test_estimate_adds_up(machine: FakeMachine) -> None:
    facts = json.loads(kdumpctl("estimate", "--json", f"--root={machine.root}").stdout)
    assert sum(term["size_bytes"] for term in facts["terms"]) == facts["required_bytes"]
    assert facts["margin_bytes"] == facts["reserved_bytes"] - facts["required_bytes"]
    text = kdumpctl("estimate", f"--root={machine.root}").stdout
    assert re.search(r"256 MiB +reserved by this boot", text)
    assert "to spare" in text
    assert "its size is a guess" in text
    machine.reserve("64M")
    assert "MISSING" in kdumpctl("estimate", f"--root={machine.root}").stdout


def test_estimate_learns_from_the_last_capture(machine: FakeMachine) -> None:
    def required() -> int:
        return int(json.loads(kdumpctl("estimate", "--json", f"--root={machine.root}").stdout)["required_bytes"])

    before = required()
    machine.crash("host-20260101T000000Z", peak_rss_bytes=90 * MIB, lowest_available_bytes=12 * MIB)
    assert before + 38 * MIB < required() <= before + 40 * MIB
    text = " ".join(kdumpctl("estimate", f"--root={machine.root}").stdout.split())
    assert "Measured in the last capture: the collector had 90 MiB at most" in text
    assert "12 MiB were free at the tightest moment." in text
    machine.crash("host-20260102T000000Z", crash_time_usec=1_800_000_000_000_000, peak_rss_bytes="much")
    assert required() == before
    assert "Measured" not in kdumpctl("estimate", f"--root={machine.root}").stdout


def test_the_modules_of_the_image_are_a_term(machine: FakeMachine) -> None:
    Bench(machine).engine.check()
    path = machine.root / "var/lib/kdumpd" / RELEASE / "image.json"
    record = json.loads(path.read_text())
    module = {**record["files"][0], "path": "usr/lib/modules/x/nvme.ko", "size": 5 * MIB}
    path.write_text(
        json.dumps({**record, "files": [*record["files"], module], "modules": ["/usr/lib/modules/x/nvme.ko"]})
    )
    facts = json.loads(kdumpctl("estimate", "--json", f"--root={machine.root}").stdout)
    assert {"name": "its modules, once they are loaded", "size_bytes": 5 * MIB} in facts["terms"]


@pytest.mark.parametrize("verb", ["estimate", "get-default-crashkernel"])
def test_what_only_root_may_add_up_is_said(machine: FakeMachine, verb: str) -> None:
    Bench(machine).engine.check()
    done = kdumpctl_as_nobody(machine.root, verb)
    assert (done.returncode, done.stdout) == (DeniedError.exit_code, "")
    assert done.stderr.startswith("kdumpctl: What a capture needs cannot be told: ")
    assert done.stderr.endswith("/run/kdumpd may not be read\n  use sudo\n")


def test_showmem(machine: FakeMachine) -> None:
    text = kdumpctl("showmem", f"--root={machine.root}").stdout
    assert text.startswith("256 MiB of ")
    assert "0x000060000000" in text
    assert json.loads(kdumpctl("showmem", "--json", f"--root={machine.root}").stdout)["reserved_bytes"] == 256 * MIB


def test_the_default_is_enough_for_the_estimate(machine: FakeMachine) -> None:
    value = kdumpctl("get-default-crashkernel", f"--root={machine.root}").stdout.strip()
    required = json.loads(kdumpctl("estimate", "--json", f"--root={machine.root}").stdout)["required_bytes"]
    assert int(value.removesuffix("M")) * MIB >= required


@pytest.fixture
def grub(machine: FakeMachine) -> FakeMachine:
    machine.write("usr/sbin/update-grub", "")
    machine.write("etc/default/grub", 'GRUB_CMDLINE_LINUX="crashkernel=128M"\n')
    return machine


@pytest.mark.parametrize("words", [("reset-crashkernel",), ("reservation", "set", "256M")])
def test_a_dry_run_changes_nothing(grub: FakeMachine, words: tuple[str, ...]) -> None:
    done = kdumpctl(*words, "--dry-run", f"--root={grub.root}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/etc/default/grub:1: crashkernel=128M stays there;")
    assert "+GRUB_CMDLINE_LINUX_DEFAULT" in done.stdout
    assert "would run: update-grub" in done.stdout
    assert not (grub.root / "etc/default/grub.d").exists()
    facts = json.loads(kdumpctl(*words, "--dry-run", "--json", f"--root={grub.root}").stdout)
    assert (facts["boot_loader"], facts["crashkernel"], facts["applied"]) == ("grub", ["256M"], False)


def test_a_boot_loader_that_fails_leaves_nothing(grub: FakeMachine) -> None:
    done = kdumpctl("reservation", "set", "256M", f"--root={grub.root}")
    assert done.returncode == 1
    assert "the files are as they were" in done.stderr
    assert not (grub.root / "etc/default/grub.d/kdumpd.cfg").exists()


def test_reservation_show(grub: FakeMachine) -> None:
    grub.write("boot/grub/grub.cfg", f"menuentry x {{\n linux /boot/vmlinuz root=UUID={UUID} ro crashkernel=128M\n}}\n")
    text = kdumpctl("reservation", "show", f"--root={grub.root}").stdout
    assert "This boot: crashkernel=256M" in text
    assert "Next boot: crashkernel=128M (/boot/grub/grub.cfg)" in text
    assert "Configured: /etc/default/grub:1: crashkernel=128M" in text
    facts = json.loads(kdumpctl("reservation", "show", "--json", f"--root={grub.root}").stdout)
    assert facts["configured"] == [{"value": "128M", "file": "/etc/default/grub", "line": 1}]


def test_an_unknown_boot_loader_is_said(machine: FakeMachine) -> None:
    text = kdumpctl("reservation", "show", f"--root={machine.root}").stdout
    assert "does not know this machine's boot loader" in " ".join(text.split())
    assert kdumpctl("reset-crashkernel", f"--root={machine.root}").returncode == 1


def test_a_size_that_is_none(grub: FakeMachine) -> None:
    done = kdumpctl("reservation", "set", "lots", f"--root={grub.root}")
    assert done.returncode == 2
    assert "crashkernel=lots cannot be used" in done.stderr


@pytest.mark.parametrize(("made", "reached"), [("256M", True), ("128M", False)])
def test_success_is_what_the_entries_say(
    grub: FakeMachine, made: str, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = f"linux /boot/vmlinuz root=UUID={UUID} ro crashkernel=128M crashkernel={made}\n"
    monkeypatch.setattr(bootloader, "apply_change", lambda change, root: grub.write("boot/grub/grub.cfg", entry))
    options = argparse.Namespace(root=grub.root, json="off", dry_run=False, action="set", size=["256M"])
    if reached:
        assert memory.reservation(options) == 0
    else:
        with pytest.raises(KdumpError, match=r"was set, but /boot/grub/grub.cfg has entries with crashkernel=128M"):
            memory.reservation(options)


def test_an_ssh_target_adds_to_the_estimate(machine: FakeMachine) -> None:
    def required() -> int:
        return int(json.loads(kdumpctl("estimate", "--json", f"--root={machine.root}").stdout)["required_bytes"])

    before = required()
    machine.config("ssh root@192.0.2.1\npath /dumps\n")
    assert required() - before == 18 << 20
