# SPDX-License-Identifier: GPL-2.0-or-later
"""The words and options of kdumpctl. Knows which function stands behind a verb by name only, so that `status` starts
fast; the completions and the manual page are tested against what is built here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import kdumpd

STYLES = ("short", "pretty", "off")
BUILDERS = ("busybox",)
DISKS = ("usb", "mmc", "nvme", "virtio", "ata")
ACCELS = ("kvm", "tcg")
ARCHES = ("arm64", "amd64", "aarch64", "x86_64")

_Add = Callable[[argparse.ArgumentParser], None]


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are one sentence that guesses what was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Ends with status 2."""
        self.exit(2, f"kdumpctl: {self._sentence(message)}\n  see: kdumpctl --help\n")

    def _sentence(self, message: str) -> str:
        verb = re.match(r"argument (?:COMMAND|ACTION): invalid choice: '?([^']*?)'? \(choose from", message)
        if verb is not None:
            return f"there is no command '{verb[1]}'{_guess(verb[1], names(self))}"
        option = re.match(r"unrecognized arguments: (\S+)", message)
        if option is not None:
            known = [name for action in self._actions for name in action.option_strings]
            return f"there is no option or argument '{option[1]}' here{_guess(option[1], known)}"
        return message.replace("argument ", "", 1) if message.startswith("argument ") else message


def _guess(word: str, known: list[str]) -> str:
    import difflib  # the only thing that needs it is a mistake

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def names(parser: argparse.ArgumentParser) -> list[str]:
    """The verbs of `parser`, aliases among them."""
    return [name for name, _ in commands(parser)]


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb of `parser` and the parser of what may follow it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def make_parser(word: str = "") -> argparse.ArgumentParser:
    """The whole language; where `word` is a verb, what can be said with that one alone, which takes a tenth of it."""
    if word:
        alone = _make(word)
        return alone if names(alone) else _make()
    return _make()


def _make(only: str = "") -> argparse.ArgumentParser:
    common = _common()
    parser = Parser(
        prog="kdumpctl",
        description="Shows whether a crash of this machine would be captured, and the crashes that were.",
        epilog="Without a command: status. See kdumpctl(8).",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"kdumpctl {kdumpd.__version__}")
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)

    def verb(name: str, run: str, text: str, *aliases: str, add: _Add | None = None) -> None:
        if only and only not in (name, *aliases):
            return
        one = verbs.add_parser(name, parents=[common], help=text, description=text, aliases=list(aliases))
        one.set_defaults(run=run, verb=name)
        if add is not None:
            add(one)

    verb("status", "status:show", "is this machine ready? (exit status 0: yes, 3: no, 4: not known)")
    verb("why-stale", "status:why_stale", "why what is loaded is not what a build would make now (exit status 3)")
    verb("watch", "watch:follow", "print each change of the state as it happens")
    verb("list", "crashes:show_list", "the crashes that were captured")
    verb("info", "crashes:show_info", "all about one crash", add=_crash)
    verb("verify", "crashes:verify_crash", "check the files of one crash against their checksums", add=_crash)
    verb("decrypt", "decrypt:run", "make an encrypted crash readable, with the private key", add=_decrypt)
    verb("test", "crash_test:crash", "CRASH this machine, to see whether a dump comes", add=_force)
    verb("rehearse", "rehearse:run", "crash a scratch machine with what is loaded, and check its dump", add=_rehearse)
    verb("load", "actions:run", "build the capture image if needed, and load it", "start")
    verb("unload", "actions:run", "unload the capture kernel until `load` is given", "stop")
    verb("reload", "actions:run", "read kdump.conf again, build if needed, and load again", "restart")
    verb("rebuild", "actions:run", "build the capture image even if it is fresh, and load it")
    verb("show-config", "configs:show", "the configuration in force, and the files it comes from")
    verb("check-config", "configs:check", "complain about kdump.conf, or about FILE", add=_file)
    verb("import-config", "configs:import_config", "turn another kdump's settings into kdump.conf", add=_import)
    verb("estimate", "memory:estimate", "how much memory a capture needs, term by term")
    verb("showmem", "memory:showmem", "how much memory is reserved, and where")
    verb("get-default-crashkernel", "memory:default_crashkernel", "the crashkernel= that fits this machine")
    verb("reset-crashkernel", "memory:reset", "set the boot loader to that crashkernel=", add=_dry_run)
    verb("reservation", "memory:reservation", "show or set crashkernel= of the next boot", add=_reservation)
    verb("propagate", "propagate:run", "make the ssh targets ready: key, host key, a round trip", add=_propagate)
    verb("test-target", "propagate:test", "try the targets on the network with the code that captures")
    verb("build", "build:build", "make image, command line and load command for a board", add=_build)
    verb("kernel-hook", "kernels:hook", "tell the service of a kernel that came or went", add=_kernel_hook)
    return parser


def _common() -> Parser:
    common = Parser(add_help=False)
    common.add_argument(
        "--json",
        choices=STYLES,
        default=argparse.SUPPRESS,
        help="print JSON on one line (also: --json alone), JSON to read, or text",
    )
    common.add_argument(
        "--root", type=Path, default=argparse.SUPPRESS, metavar="FOLDER", help="look at the machine below FOLDER"
    )
    return common


def _crash(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("crash", nargs="?", default="last", metavar="CRASH", help="number, name or `last` (default)")


def _decrypt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "crash", nargs="?", default="last", metavar="CRASH", help="number, name, `last` (default), or a file or folder"
    )
    parser.add_argument(
        "--identity", "-i", type=Path, action="append", metavar="FILE", help="the private key (age-keygen); - reads it"
    )
    parser.add_argument("--output", "-o", type=Path, metavar="FOLDER", help="where the files go; made if missing")


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a file to look at instead")


def _force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="without a question")


def _rehearse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accel", choices=ACCELS, help="how QEMU runs the machine; default: kvm where it works")


def _propagate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="USER@HOST[:PORT]", help="default: those of kdump.conf")
    parser.add_argument("--yes", action="store_true", help="pin the host key that the server shows, unseen")
    parser.add_argument("--fingerprint", metavar="SHA256:...", help="pin the host key that has this fingerprint")


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: the files of the known tools")
    parser.add_argument("--force", action="store_true", help="replace what an earlier import wrote")
    _dry_run(parser)


def _reservation(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    common = _common()
    actions.add_parser("show", parents=[common], help="what this boot has and the next one will have")
    change = actions.add_parser("set", parents=[common], help="make the next boot reserve SIZE")
    change.add_argument("size", nargs="+", metavar="SIZE", help="as crashkernel= takes it: 256M; 512M,high 128M,low")
    _dry_run(change)


def _build(parser: argparse.ArgumentParser) -> None:
    def file(name: str, text: str, *, metavar: str = "FILE", required: bool = False) -> None:
        parser.add_argument(name, type=Path, metavar=metavar, required=required, help=text)

    file("--kernel", "the board's kernel, as its boot loader starts it", required=True)
    file("--dtb", "the board's device tree")
    file("--out", "where to put it all", metavar="FOLDER", required=True)
    parser.add_argument("--builder", choices=BUILDERS, default=BUILDERS[0], help="what the image is made of")
    parser.add_argument("--target", metavar="TARGET", help="as in kdump.conf: 'ext4 LABEL=CRASHES'")
    file("--config", "a kdump.conf, instead of the one below --root")
    file("--modules", "the kernel's modules; without them all has to be built in", metavar="FOLDER")
    parser.add_argument("--module", action="append", default=[], metavar="NAME", help="a further driver (repeatable)")
    parser.add_argument(
        "--disk", action="append", default=[], choices=DISKS, help="what the disk hangs on (repeatable; default: any)"
    )
    file("--kernel-config", "how the kernel was built, where it does not carry that itself")
    parser.add_argument("--arch", choices=ARCHES, help="the board's architecture; default: the kernel's")
    parser.add_argument("--hostname", metavar="NAME", help="default: the one in etc/hostname below --root")


def _kernel_hook(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    for name, text in (("add", "RELEASE was installed"), ("remove", "RELEASE was removed")):
        action = actions.add_parser(name, parents=[_common()], help=text)
        action.add_argument("release", metavar="RELEASE", help="as uname -r prints it")
        # The hooks of kernel-install(8) and of Debian pass more words; they are not needed.
        action.add_argument("rest", nargs="*", default=[], help=argparse.SUPPRESS)
