# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.service.state and plan: facts in, judgement and plan out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from kdumpd.config.model import Problem
from kdumpd.host.crashkernel import Expectation
from kdumpd.host.machine import Machine
from kdumpd.host.nextboot import NextBoot
from kdumpd.host.security import Security
from kdumpd.host.sysctl import Triggers
from kdumpd.host.topology import Topology
from kdumpd.service.estimate import MIB, Need, estimate
from kdumpd.service.model import Code, Facts, Failure, Held, Image, LoadedRecord, Rung, Surroundings, Trouble
from kdumpd.service.plan import make_plan
from kdumpd.service.state import decide
from kdumpd.service.status import make_status

DOCS = Path(__file__).resolve().parents[3] / "docs" / "STATE.md"

RECORD = LoadedRecord(
    boot_id="boot",
    release="6.1.0",
    image_id="id-1",
    kernel="/boot/vmlinuz-6.1.0",
    initrd="/var/lib/kdumpd/loaded/initrd",
    initrd_sha256="00",
    cmdline="irqpoll",
    loaded_usec=1_700_000_000_000_000,
)
FRESH = Image(path=Path("/var/lib/kdumpd/6.1.0/initrd"), present=True, image_id="id-1", sha256="00")
STALE = dataclasses.replace(FRESH, stale="level changed from 31 to 0")
NEWER = dataclasses.replace(FRESH, image_id="id-2")
OTHER_KERNEL = dataclasses.replace(FRESH, kernel_sha256="bb")
MISSING = Image(path=FRESH.path)
DAMAGED = Image(path=FRESH.path, present=True, damaged="it has 3 bytes")
READY = Facts(
    machine=Machine(arch="x86_64", release="6.1.0", boot_id="boot"),
    crash_loaded=True,
    syscall_known=True,
    crashkernel="256M",
    expectation=Expectation(size_bytes=256 * MIB),
    reserved_bytes=256 * MIB,
    need=Need(kernel_bytes=50 * MIB, packed_bytes=0, unpacked_bytes=60 * MIB, bitmap_bytes=0),  # 146 MiB in all
    security=Security(),
    problems=(),
    kernel=Path("/boot/vmlinuz-6.1.0"),
    kernel_trouble=None,
    target_trouble=None,
    image=FRESH,
    loaded=RECORD,
    load_interrupted=False,
    proven_images=frozenset(),
    held=None,
    failure=None,
)
ERROR = Problem(file="/etc/kdump.conf", line=3, message="path must begin with a slash", fatal=True)
WARNING = Problem(file="/etc/kdump.conf", line=4, message="unknown directive 'x'", fatal=False)
UNREACHABLE = Surroundings(unreachable=(Trouble(sentence="Away", hint="kdumpctl test-target"),))
OFF = {"crash_loaded": False, "loaded": None}
OTHER = {"crash_loaded": True, "loaded": None}


def facts(**changes: object) -> Facts:
    return dataclasses.replace(READY, **changes)  # type: ignore[arg-type]  # keys are fields


@pytest.mark.parametrize(
    ("changes", "rung", "codes"),
    [
        ({}, "loaded", ["not-proven"]),
        ({"proven_images": frozenset({"id-1"})}, "proven", []),
        ({"proven_images": frozenset({"id-0"})}, "loaded", ["not-proven"]),
        ({"crash_loaded": None}, "unsupported", ["kexec-missing"]),
        ({"syscall_known": False, **OFF}, "unsupported", ["arch-unsupported"]),
        ({"reserved_bytes": 0, "crashkernel": "", **OFF}, "not-reserved", ["crashkernel-missing"]),
        ({"reserved_bytes": 0, **OFF}, "not-reserved", ["crashkernel-ignored"]),
        ({"reserved_bytes": 64 * MIB, **OFF}, "reserved-too-small", ["reservation-too-small"]),
        # loaded into too little memory is not armed
        ({"reserved_bytes": 64 * MIB}, "reserved-too-small", ["reservation-too-small"]),
        ({"image": MISSING, **OFF}, "image-missing", ["image-missing"]),
        ({"image": DAMAGED, **OFF}, "image-missing", ["image-damaged"]),
        ({"image": STALE, **OFF}, "image-stale", ["image-stale"]),
        (OFF, "unloaded", ["not-loaded"]),
        ({"held": Held.REQUEST, **OFF}, "unloaded", ["held"]),
        (OTHER, "unloaded", ["loaded-by-other"]),
        ({"image": MISSING, **OTHER}, "image-missing", ["loaded-by-other", "image-missing"]),
        ({"image": STALE}, "loaded-stale", ["image-stale"]),
        ({"image": MISSING}, "loaded-stale", ["image-missing"]),
        ({"image": DAMAGED}, "loaded-stale", ["image-damaged"]),
        ({"image": DAMAGED, "problems": (ERROR,)}, "loaded-stale", ["config-error", "image-damaged"]),
        ({"image": NEWER, "problems": (ERROR,)}, "loaded-stale", ["config-error"]),
        ({"image": NEWER}, "loaded-stale", ["old-image-loaded"]),
        # a newer image proves nothing for the one that is loaded
        ({"image": NEWER, "proven_images": frozenset({"id-2"})}, "loaded-stale", ["old-image-loaded"]),
        ({"loaded": None, "load_interrupted": True}, "loaded-stale", ["load-interrupted"]),
        ({"problems": (ERROR,)}, "loaded-stale", ["config-error"]),
        ({"problems": (ERROR,), **OFF}, "unloaded", ["config-error"]),
        ({"problems": (ERROR,), "image": MISSING, **OFF}, "image-missing", ["config-error", "image-missing"]),
        ({"problems": (WARNING,)}, "loaded", ["not-proven", "config-warning"]),
        ({"security": Security(load_disabled=True), **OFF}, "unloaded", ["loading-disabled"]),
        # what is loaded stays loaded when loading is switched off
        ({"security": Security(load_disabled=True)}, "loaded", ["not-proven"]),
        (
            {"failure": Failure(code=Code.LOAD_FAILED, sentence="No", cure=""), **OFF},
            "unloaded",
            ["load-failed"],
        ),
        ({"failure": Failure(code=Code.BUILD_FAILED, sentence="No")}, "loaded", ["build-failed", "not-proven"]),
        (
            {"kernel": None, "kernel_trouble": Trouble(sentence="Gone"), "image": MISSING, **OFF},
            "image-missing",
            ["kernel-not-found", "image-missing"],
        ),
        ({"target_trouble": Trouble(sentence="Gone"), **OFF}, "unloaded", ["target-unusable"]),
        # a server that is away may be back at the crash: what is loaded stays
        ({"around": UNREACHABLE}, "loaded", ["target-unreachable", "not-proven"]),
        ({"around": UNREACHABLE, **OFF}, "unloaded", ["target-unreachable"]),
        (
            {"target_trouble": Trouble(sentence="LUKS", code=Code.TARGET_LOCKED), **OFF},
            "unloaded",
            ["target-locked-in-capture"],
        ),
    ],
)
def test_judgements(changes: dict[str, object], rung: str, codes: list[str]) -> None:
    state = decide(facts(**changes))
    assert state.rung.value == rung
    assert [reason.code.value for reason in state.reasons] == codes


@pytest.mark.parametrize(
    ("changes", "build", "load"),
    [
        ({}, False, False),
        (OFF, False, True),
        ({"held": Held.REQUEST, **OFF}, False, False),
        (OTHER, False, False),
        ({"image": MISSING, **OFF}, True, True),
        ({"image": DAMAGED, **OFF}, True, True),
        ({"image": STALE}, True, True),
        ({"image": STALE, **OTHER}, True, False),
        ({"image": STALE, "no_rebuild": True}, False, False),
        ({"image": STALE, "no_rebuild": True, **OFF}, False, True),
        ({"image": DAMAGED, "no_rebuild": True, **OFF}, True, True),
        ({"image": NEWER}, False, True),
        ({"loaded": None, "load_interrupted": True}, False, True),
        ({"problems": (ERROR,), "image": STALE}, False, False),
        ({"problems": (ERROR,), "image": STALE, **OFF}, False, True),
        ({"problems": (ERROR,), "image": MISSING, **OFF}, False, False),
        ({"target_trouble": Trouble(sentence="Gone"), "image": STALE, **OFF}, False, True),
        ({"kernel": None, "image": STALE, **OFF}, False, False),
        ({"reserved_bytes": 0, **OFF}, False, False),
        ({"reserved_bytes": 64 * MIB, **OFF}, False, True),
        ({"crash_loaded": None, "loaded": None}, False, False),
        ({"syscall_known": False, **OFF}, False, False),
        ({"security": Security(load_disabled=True), **OFF}, False, False),
    ],
)
def test_plans(changes: dict[str, object], build: bool, load: bool) -> None:
    plan = make_plan(facts(**changes))
    assert (plan.build, plan.load) == (build, load)
    assert bool(plan) == (build or load)
    assert (str(plan) == "nothing to do") == (not plan)


def test_a_person_may_replace_and_repeat() -> None:
    assert make_plan(facts(), asked=True).load
    assert make_plan(facts(**OTHER), asked=True).load
    assert make_plan(facts(held=Held.REQUEST, **OFF), asked=True).load
    assert make_plan(facts(), asked=True, rebuild=True).build
    assert not make_plan(facts(security=Security(load_disabled=True)), asked=True)


@pytest.mark.parametrize(
    ("around", "code", "words"),
    [
        ({"next_boot": NextBoot(files=("/g",), crashkernels=("",))}, "next-boot-unreserved", "/g has no crashkernel="),
        (
            {"next_boot": NextBoot(files=("/g", "/h"), crashkernels=("256M", ""))},
            "next-boot-unreserved",
            "/g and others has an entry without",
        ),
        ({"next_boot": NextBoot(files=("/g",), crashkernels=("1G",))}, "next-boot-differs", "crashkernel=1G (/g)"),
        ({"cma_missing": True}, "cma-ignored", "no ,cma area"),
        (
            {"target_troubles": (Trouble(sentence="No UUID=3", hint="blkid"),)},
            "target-degraded",
            "One of the targets in kdump.conf cannot be used, the others can: No UUID=3",
        ),
        (
            {"raw_waiting": ("h-1 on /dev/vdb",)},
            "raw-waiting",
            "Dumps wait on a raw device to be copied: h-1 on /dev/vdb",
        ),
        ({"free_bytes": MIB, "dump_bytes": 3 * MIB - 1}, "target-space-low", "1 MiB are free where dumps go"),
        ({"image_appraised": True}, "image-appraised", "IMA"),
        ({"triggers": Triggers(panics=(("oops", False),))}, "oops-not-captured", "panic_on_oops is 0"),
    ],
)
def test_a_warning_lowers_no_rung(around: dict[str, object], code: str, words: str) -> None:
    state = decide(facts(around=dataclasses.replace(Surroundings(), **around)))  # type: ignore[arg-type]
    assert state.rung is Rung.LOADED
    assert [reason.code.value for reason in state.reasons] == ["not-proven", code]
    assert words in state.reasons[1].sentence
    assert state.reasons[1].cure


@pytest.mark.parametrize(
    "around",
    [
        {"next_boot": NextBoot(files=("/g",), crashkernels=("256M",))},
        {"free_bytes": None, "dump_bytes": MIB},
        {"free_bytes": MIB, "dump_bytes": 0},
        {"triggers": Triggers(panics=(("oops", True), ("warning", False)))},
    ],
)
def test_what_is_well_or_unknown_is_no_warning(around: dict[str, object]) -> None:
    state = decide(facts(around=dataclasses.replace(Surroundings(), **around)))  # type: ignore[arg-type]
    assert [reason.code.value for reason in state.reasons] == ["not-proven"]


def test_fadump_takes_the_crashes() -> None:
    found = facts(around=Surroundings(fadump=True))
    assert decide(found).rung is Rung.UNSUPPORTED
    assert decide(found).reasons[0].code is Code.FADUMP_ACTIVE
    assert not make_plan(found, asked=True)


HARDWARE = dataclasses.replace(RECORD, cpus="0-1", memory="0-ff")


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (Topology(cpus="0-1", memory="0-ff"), ()),
        (Topology(cpus="0-3", memory="0-ff"), ("processors",)),
        (Topology(cpus="0-3", memory="0-1ff"), ("processors", "memory")),
        (Topology(cpus="0-3", memory="0-1ff", cpus_handled=True), ("memory",)),
        (Topology(cpus="0-3", memory="0-1ff", memory_handled=True), ("processors",)),
        (Topology(cpus="0-3", memory="0-1ff", cpus_handled=True, memory_handled=True), ()),
        (Topology(), ()),  # hidden from whoever looks: unknown is not changed
    ],
)
def test_hardware_that_the_kernel_does_not_mend_is_loaded_again(now: Topology, changed: tuple[str, ...]) -> None:
    found = facts(loaded=HARDWARE, around=Surroundings(topology=now))
    assert found.changed_hardware == changed
    assert make_plan(found).load == bool(changed)
    assert decide(found).rung is (Rung.LOADED_STALE if changed else Rung.LOADED)
    assert ("hardware-changed" in [reason.code.value for reason in decide(found).reasons]) == bool(changed)
    # A record of a version that did not note them claims nothing.
    assert not facts(around=Surroundings(topology=now)).changed_hardware


def test_a_used_up_load_limit_is_said_and_not_run_into() -> None:
    found = facts(security=Security(load_limit=0), **OFF)
    assert decide(found).reasons[0].code is Code.LOAD_LIMIT_REACHED
    assert not make_plan(found, asked=True)
    assert decide(facts(security=Security(load_limit=0))).rung is Rung.LOADED


def test_every_code_is_in_the_documentation() -> None:
    section = DOCS.read_text().split("## Reasons")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)
    assert sorted(documented) == sorted(code.value for code in Code)


def test_every_rung_is_in_the_documentation_in_its_order() -> None:
    section = DOCS.read_text().split("## The ladder")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\| (yes|no) \|$", section, re.MULTILINE)
    assert rows == [(rung.value, "yes" if rung.armed else "no") for rung in Rung]


def test_every_code_is_used() -> None:
    text = "".join(path.read_text() for path in (DOCS.parents[1] / "kdumpd/service").glob("*.py"))
    for code in Code:
        assert f"Code.{code.name}" in text


def test_sentences_are_sentences() -> None:
    seen = 0
    for changes in (
        {"crash_loaded": None},
        {"reserved_bytes": 0},
        {"reserved_bytes": MIB},
        OFF,
        OTHER,
        {"image": STALE},
    ):
        for reason in decide(facts(**changes)).reasons:
            assert reason.sentence[0].isupper() or reason.sentence[0].isdigit()
            assert not reason.sentence.endswith(".")
            assert "\n" not in reason.sentence + reason.cure
            seen += 1
    assert seen >= 6


def test_too_small_names_both_figures() -> None:
    reason = decide(facts(reserved_bytes=64 * MIB)).reasons[0]
    assert "64 MiB" in reason.sentence
    assert "146 MiB" in reason.sentence
    assert reason.cure == "kdumpctl reservation set 256M, and boot again"


@pytest.mark.parametrize(("reserved", "fits"), [(64, False), (128, False), (160, True), (192, True), (256, True)])
def test_the_estimate_against_what_was_measured(reserved: int, fits: bool) -> None:
    need = estimate(kernel_bytes=56 * MIB, packed_bytes=14_000_000, unpacked_bytes=47_000_000, memory_bytes=4 << 30)
    assert (need.total_bytes <= reserved * MIB) == fits


def test_more_memory_needs_larger_bitmaps() -> None:
    def total(memory: int) -> int:
        need = estimate(kernel_bytes=None, packed_bytes=None, unpacked_bytes=None, memory_bytes=memory)
        return need.total_bytes

    assert total(1 << 40) - total(0) == 64 * MIB


def test_what_a_capture_took_counts_where_it_is_more_than_was_thought() -> None:
    def total(measured: int | None) -> int:
        need = estimate(
            kernel_bytes=None, packed_bytes=None, unpacked_bytes=None, memory_bytes=4 << 30, measured_bytes=measured
        )
        return need.total_bytes

    assert total(50 * MIB) == total(None)
    assert total(100 * MIB) == total(None) + 50 * MIB - (4 << 30 >> 14)
    for nonsense in (0, -1, 1 << 40):
        assert total(nonsense) == total(None)


def test_modules_are_in_memory_twice() -> None:
    def total(modules: int) -> int:
        return estimate(
            kernel_bytes=None, packed_bytes=None, unpacked_bytes=None, memory_bytes=0, modules_bytes=modules
        ).total_bytes

    assert total(7 * MIB) - total(0) == 7 * MIB


def test_status_of_what_others_loaded_has_no_time() -> None:
    assert make_status(facts(**OTHER)).loaded
    assert make_status(facts(**OTHER)).loaded_since_usec == 0
    assert make_status(facts(**OFF)).loaded_since_usec == 0
    assert make_status(facts()).loaded_since_usec == RECORD.loaded_usec


def test_paramiko_needs_memory_of_its_own() -> None:
    def total(*, ssh: bool, measured: int | None = None) -> int:
        return estimate(
            kernel_bytes=56 * MIB,
            packed_bytes=14_000_000,
            unpacked_bytes=13_000_000,
            memory_bytes=4 << 30,
            measured_bytes=measured,
            ssh=ssh,
        ).total_bytes

    assert total(ssh=True) - total(ssh=False) == 18 * MIB
    # What was measured holds it already.
    assert total(ssh=True, measured=200 * MIB) == total(ssh=False, measured=200 * MIB)


def test_a_kernel_that_was_replaced_is_loaded_though_its_image_is_the_same() -> None:
    """The image does not hold it; whoever looks at the image alone, after a restart, would not load it."""
    loaded = dataclasses.replace(RECORD, kernel_sha256="aa")
    facts = dataclasses.replace(READY, image=OTHER_KERNEL, loaded=loaded)
    state = decide(facts)
    assert state.rung is Rung.LOADED_STALE
    assert Code.OLD_IMAGE_LOADED in [reason.code for reason in state.reasons]
    assert make_plan(facts).load
    assert not make_plan(facts).build
    # One that the kernel refused is not tried again, and the next one is.
    failure = Failure(code=Code.LOAD_FAILED, sentence="no", refused=facts.wanted)
    assert not make_plan(dataclasses.replace(facts, failure=failure))
    mended = dataclasses.replace(facts, failure=failure, image=dataclasses.replace(FRESH, kernel_sha256="cc"))
    assert make_plan(mended).load
    # What was loaded before its kernel was noted is left alone.
    assert not make_plan(dataclasses.replace(facts, loaded=RECORD))
