# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl status: a checklist, the first failing line on top with its cure.

Asks the service; where none answers it looks at the machine itself and says so. Judges nothing: the state and its
reasons come from `kdumpd.service.state` in both cases.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdumpd.cli import failure, output
from kdumpd.errors import KdumpError, ServiceUnreachableError

EXIT_ARMED = 0
EXIT_NOT_ARMED = 3
EXIT_UNKNOWN = 4
_LADDER = (
    "unsupported",
    "not-reserved",
    "reserved-too-small",
    "image-missing",
    "image-stale",
    "unloaded",
    "loaded",
    "loaded-stale",
    "rehearsed",
    "proven",
)


# Reasons that `why-stale` is about.
_STALE = frozenset(
    {"image-missing", "image-stale", "image-damaged", "old-image-loaded", "load-interrupted"}
    | {"hardware-changed", "old-settings-loaded"}
)


class Report(NamedTuple):
    """What is printed: `fields` as in --json; `service` tells where it comes from."""

    fields: Mapping[str, Any]
    service: bool

    @property
    def reasons(self) -> list[Mapping[str, str]]:
        """code, sentence and cure each, the most important first."""
        found: list[Mapping[str, str]] = self.fields["reasons"]
        return found


class _Check(NamedTuple):
    """A line: fails with any reason of `codes`, is good from the rung `above` on."""

    label: str
    codes: frozenset[str]
    above: str


_CHECKS = (
    _Check(
        "kernel", frozenset({"kexec-missing", "arch-unsupported", "fadump-active", "kernel-not-found"}), "not-reserved"
    ),
    _Check(
        "memory",
        frozenset({"crashkernel-missing", "crashkernel-ignored", "reservation-too-small"}),
        "image-missing",
    ),
    _Check("kdump.conf", frozenset({"config-error"}), "unsupported"),
    _Check("target", frozenset({"target-unusable", "target-unreachable", "target-locked-in-capture"}), "unsupported"),
    _Check("image", frozenset({"image-missing", "image-stale", "image-damaged", "build-failed"}), "unloaded"),
    _Check(
        "loaded",
        frozenset(
            {"not-loaded", "held", "loaded-by-other", "load-failed", "unload-failed", "loading-disabled"}
            | {
                "load-interrupted",
                "old-image-loaded",
                "old-settings-loaded",
                "hardware-changed",
                "unloaded-by-other",
                "load-limit-reached",
            }
        ),
        "loaded",
    ),
    _Check("rehearsed", frozenset({"rehearsal-failed"}), "rehearsed"),
    _Check("proven", frozenset(), "proven"),
)
# Reasons that tell something without making a line fail.
_UNPROVEN = "not-proven"
_NOTES = frozenset(
    {
        "config-warning",
        "next-boot-unreserved",
        "next-boot-differs",
        "cma-ignored",
        "target-space-low",
        "target-degraded",
        "raw-waiting",
    }
    | {"image-appraised", "oops-not-captured", "crash-without-dump", "rehearsal-failed", _UNPROVEN}
)


def show(options: Namespace) -> int:
    """Prints the status; 0 armed, 3 not armed, 4 not known."""
    try:
        report = read(options.root)
    except KdumpError as error:
        failure.report(error)
        return EXIT_UNKNOWN
    print_report(report, options.json)
    return EXIT_ARMED if report.fields["armed"] else EXIT_NOT_ARMED


def why_stale(options: Namespace) -> int:
    """Prints why the image or what is loaded is out of date; 0 nothing is, 3 something is, 4 not known."""
    try:
        report = read(options.root)
    except KdumpError as error:
        failure.report(error)
        return EXIT_UNKNOWN
    reasons = [entry for entry in report.reasons if entry["code"] in _STALE]
    if options.json != "off":
        output.print_json({"stale": bool(reasons), "reasons": reasons, "service": report.service}, options.json)
        return EXIT_NOT_ARMED if reasons else EXIT_ARMED
    for entry in reasons:
        print(output.wrap(entry["sentence"], 2, begins=0))
        if entry["cure"]:
            print("  " + output.wrap(f"{output.marks()['then']} {entry['cure']}", 4, begins=2))
    if not reasons:
        none = not report.fields.get("image_id")
        print(
            "There is no capture image yet, and so nothing that is out of date." if none else "Nothing is out of date."
        )
    return EXIT_NOT_ARMED if reasons else EXIT_ARMED


def read(root: Path) -> Report:
    """From the service, or from the machine below `root` itself."""
    if root == Path("/"):
        try:
            from kdumpd.cli import bus

            return from_service(bus.properties())
        except ServiceUnreachableError:
            return read_machine(root)
    return read_machine(root)


def from_service(properties: Mapping[str, Any]) -> Report:
    """The properties of the Manager, renamed to the keys of --json."""
    names = {
        "state": "State",
        "armed": "Armed",
        "release": "KernelRelease",
        "reserved_bytes": "ReservedBytes",
        "required_bytes": "RequiredBytes",
        "loaded": "Loaded",
        "loaded_since_usec": "LoadedSinceUsec",
        "image_path": "ImagePath",
        "image_id": "ImageId",
        "activity": "Activity",
        "last_error": "LastError",
        "crashkernel": "Crashkernel",
        "next_crashkernels": "NextCrashkernels",
        "triggers": "Triggers",
        "panic_timeout": "PanicTimeout",
        "lockdown": "Lockdown",
        "secure_boot": "SecureBoot",
        "hotplug": "Hotplug",
        "last_capture": "LastCapture",
        "last_test": "LastTest",
        "last_rehearsal": "LastRehearsal",
        "reasons": "Reasons",
    }
    # A service that was not started again after an upgrade may lack what is new.
    fields = {key: properties[name] for key, name in names.items() if name in properties}
    return Report(fields=fields, service=True)


def read_machine(root: Path = Path("/")) -> Report:
    """What the machine below `root` itself shows. Raises DeniedError."""
    from kdumpd.service.look import look

    return Report(fields=look(root).to_dict(), service=False)


def print_report(report: Report, style: str) -> None:
    """As JSON or as text."""
    if style != "off":
        output.print_json({**report.fields, "service": report.service}, style)
        return
    print(headline(report))
    for line in lines(report):
        print(line)


def headline(report: Report) -> str:
    """One line: armed or not, and the first reason with its cure below it."""
    signs = output.marks()
    state = report.fields["state"]
    if report.fields["armed"]:
        return f"{signs['on']} kdumpd: armed ({state})"
    reason = next((entry for entry in report.reasons if entry["code"] not in _NOTES), None)
    if reason is None:
        return f"{signs['off']} kdumpd: NOT ARMED ({state})"
    text = f"{signs['off']} " + output.wrap(f"kdumpd: NOT ARMED: {reason['sentence']}", 2)
    if not reason["cure"]:
        return text
    return f"{text}\n  " + output.wrap(f"{signs['then']} {reason['cure']}", 4, begins=2)


def summary(report: Report) -> str:
    """One line without signs: the state, what is being done, and the first reason."""
    words = f"{'armed' if report.fields['armed'] else 'NOT ARMED'} ({report.fields['state']})"
    if report.fields["activity"]:
        words += f", {report.fields['activity']}"
    return f"{words}: {report.reasons[0]['sentence']}" if report.reasons else words


def lines(report: Report) -> list[str]:
    """The checklist, then the notes."""
    signs = output.marks()
    found = []
    for check in _CHECKS:
        failing = [entry for entry in report.reasons if entry["code"] in check.codes]
        sign = "bad" if failing else "good" if _reached(report, check.above) else "open"
        if check.label == "image" and not failing and report.fields["image_id"]:
            sign = "good"
        if not failing:
            found.append(f"  {signs[sign]} {check.label:<11} {output.wrap(_good_text(check.label, sign, report), 16)}")
        found.extend(_reasons(f"  {signs[sign]} {check.label:<11} ", failing))
        if check.label == "proven":
            found.extend(_cure(entry) for entry in report.reasons if entry["code"] == _UNPROVEN and entry["cure"])
    # Also what this kdumpctl does not know: the service may be a newer one.
    known = {_UNPROVEN}.union(*(check.codes for check in _CHECKS))
    for entry in report.reasons:
        if entry["code"] not in known:
            found.extend(_reasons(f"  {signs['open']} {'note':<11} ", [entry]))
    if report.fields.get("last_test"):
        found.append(f"  {signs['open']} {'test':<11} {output.wrap(_test_text(report.fields['last_test']), 16)}")
    if report.fields["activity"]:
        found.append(f"  The service is {report.fields['activity']} at this moment.")
    if not report.service:
        found.append("  The service kdumpd does not answer; this was read from the machine itself.")
    return found


def _reasons(begins: str, entries: list[Mapping[str, str]]) -> list[str]:
    """All of them below each other, the first behind `begins`; a cure of several stands once, below the last."""
    found = []
    for number, entry in enumerate(entries):
        found.append((" " * 16 if number else begins) + output.wrap(entry["sentence"], 16))
        following = entries[number + 1]["cure"] if number + 1 < len(entries) else ""
        if entry["cure"] and entry["cure"] != following:
            found.append(_cure(entry))
    return found


def _cure(entry: Mapping[str, str]) -> str:
    return " " * 16 + output.wrap(f"{output.marks()['then']} {entry['cure']}", 18, begins=16)


def _test_text(test: Mapping[str, Any]) -> str:
    left = f"the dump is {test['crash']} ({test['outcome']})" if test.get("crash") else "no dump came"
    return f"crashed on request {output.moment(test['time_usec'])}: {left}"


def _rehearsal_text(report: Report, sign: str) -> str:
    if report.fields["state"] == "proven":
        return "a real crash was captured, which shows more"
    if sign != "good":
        return "this image was not tried in a scratch machine yet"
    last = report.fields.get("last_rehearsal") or {}
    exchanged = f"; exchanged: {last['exchanged']}" if last.get("exchanged") else ""
    return f"a scratch machine delivered a dump {output.moment(last.get('time_usec', 0))}{exchanged}"


def _reached(report: Report, rung: str) -> bool:
    state = report.fields["state"]
    return state in _LADDER and _LADDER.index(state) >= _LADDER.index(rung)


def _good_text(label: str, sign: str, report: Report) -> str:
    """What stands behind a check that does not fail, or was not reached."""
    fields = report.fields
    reserved, required = int(fields["reserved_bytes"]) >> 20, -(-int(fields["required_bytes"]) >> 20)
    if label == "kernel":
        return str(fields["release"])
    if label == "memory":
        return f"{reserved} MiB reserved, a capture needs about {required} MiB"
    if label == "kdump.conf":
        return "no errors"
    if label == "target":
        return "the capture kernel can reach it"
    if label == "image":
        return str(fields["image_path"]) if fields["image_id"] else "none yet"
    if label == "rehearsed":
        return _rehearsal_text(report, sign)
    if label == "loaded":
        return f"since {output.moment(fields['loaded_since_usec'])}" if sign == "good" else "no"
    return "this image has saved a crash" if sign == "good" else "this image has not saved a crash yet"
