# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of makedumpfile(8) as kdumpd-collect takes them, on its command line and in kdump.conf.

One table for both places. Words are read as getopt_long(3) does: letters may be joined (`-cd31`), a value may
follow with `=` or as the next word, a long name may be shortened, operands may stand anywhere. Never raises: what is
not understood becomes a sentence in `problems`.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Sequence

from kdumpd.config.age_keys import recipient_keys
from kdumpd.config.model import Compression, DumpSettings

PROGRAMS = ("makedumpfile", "kdumpd-collect")
MAX_LEVEL = 31
MAX_THREADS = 1024
MAX_MESSAGES = 31
COMPRESSION_LEVELS = {Compression.ZLIB: (1, 9), Compression.ZSTD: (-50, 19)}


class Verb(enum.StrEnum):
    """What is to be done; makedumpfile has an option for each but the first."""

    DUMP = "dump"
    SPLIT = "split"
    REASSEMBLE = "reassemble"
    REARRANGE = "rearrange"
    DMESG = "dmesg"
    PARTIAL_DMESG = "partial-dmesg"
    MEM_USAGE = "mem-usage"
    VERIFY = "verify"
    CHECK = "check"
    HELP = "help"
    VERSION = "version"


class Messages(enum.IntFlag):
    """The bits of --message-level."""

    PROGRESS = 1
    COMMON = 2
    ERROR = 4
    DEBUG = 8
    REPORT = 16


DEFAULT_MESSAGES = Messages.PROGRESS | Messages.COMMON | Messages.ERROR


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectorOptions:
    """A command line that was read. `operands` are file names in their order; `without_effect` and `problems` are
    sentences on options that change nothing, and on what was not understood. `encrypt_to` are public keys of age."""

    verb: Verb = Verb.DUMP
    dump: DumpSettings = dataclasses.field(default_factory=DumpSettings)
    force: bool = False
    dry_run: bool = False
    show_stats: bool = False
    json: bool = False
    messages: Messages = DEFAULT_MESSAGES
    vmlinux: str | None = None
    encrypt_to: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


Changes = dict[str, object]
"""Fields of CollectorOptions, and of DumpSettings as "dump.field"."""


class _BadValueError(Exception):
    """What is wrong with a value; becomes a problem."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. `value` names what it takes, `read` turns that into changes; `why_not` is why it is refused,
    `no_effect` why it changes nothing. `in_config` is whether kdump.conf may have it."""

    names: tuple[str, ...]
    help: str = ""
    value: str | None = None
    read: Callable[[str], Changes] = lambda _: {}
    in_config: bool = False
    why_not: str | None = None
    no_effect: str | None = None


def _levels(text: str) -> Changes:
    parts = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,3}", part) and int(part) <= MAX_LEVEL for part in parts):
        raise _BadValueError(f"dump level '{text}' is not a number from 0 to {MAX_LEVEL}, or several with commas")
    return {"dump.levels": tuple(int(part) for part in parts)}


def _number(field: str, what: str, low: int, high: int) -> Callable[[str], Changes]:
    def read(text: str) -> Changes:
        if not re.fullmatch(r"-?[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise _BadValueError(f"{what} '{text}' is not a number from {low} to {high}")
        return {field: int(text)}

    return read


def _compression_level(text: str) -> Changes:
    if text == "auto":
        return {"dump.compression_level": None}
    low, high = COMPRESSION_LEVELS[Compression.ZSTD]
    return _number("dump.compression_level", "compression level", low, high)(text)


def _recipients(text: str) -> Changes:
    try:
        return {"encrypt_to": recipient_keys(text)}
    except ValueError as error:
        raise _BadValueError(str(error)) from error


def _messages(text: str) -> Changes:
    changes = _number("messages", "message level", 0, MAX_MESSAGES)(text)
    return {"messages": Messages(int(str(changes["messages"])))}


def _sets(**changes: object) -> Callable[[str], Changes]:
    return lambda _: {name.replace("__", "."): value for name, value in changes.items()}


def _codec(codec: Compression) -> Callable[[str], Changes]:
    return _sets(dump__compression=codec)


def _verb(verb: Verb) -> Callable[[str], Changes]:
    return _sets(verb=verb)


_NO_XEN = "Xen's memory is not read"
_NO_ERASE = "nothing is erased from the pages that are kept; a dump that only seems to be cleaned is worse than none"
_NO_INFO = "VMCOREINFO is taken from the memory itself; -x VMLINUX adds what it lacks"
_OUR_MEMORY = "the collector's memory has fixed bounds"

OPTIONS: tuple[Option, ...] = (
    Option(names=("-d", "--dump-level"), value="LEVEL[,LEVEL...]", read=_levels, in_config=True,
           help="leave pages out, the sum of: 1 zero, 2 cache, 4 cache with private data, 8 user data, 16 free; "
                "further levels are for when the room does not suffice"),
    Option(names=("-c", "--zlib"), read=_codec(Compression.ZLIB), in_config=True, help="pack each page with zlib"),
    Option(names=("-l", "--lzo"), read=_codec(Compression.LZO), in_config=True, help="pack with lzo (python3-lzo)"),
    Option(names=("-p", "--snappy"), read=_codec(Compression.SNAPPY), in_config=True,
           help="pack with snappy (python3-snappy)"),
    Option(names=("-z", "--zstd"), read=_codec(Compression.ZSTD), in_config=True, help="pack with zstd"),
    Option(names=("--compression-level",), value="N|auto", read=_compression_level, in_config=True,
           help="of zlib 1 to 9, of zstd -50 to 19; auto suits it to the target"),
    Option(names=("-E", "--elf"), read=_sets(dump__elf=True), in_config=True, help="write an ELF core file"),
    Option(names=("-F", "--flattened"), read=_sets(dump__flattened=True), in_config=True,
           help="write a stream, to standard output where no OUT is given"),
    Option(names=("--num-threads",), value="N", in_config=True, help="threads that pack, one a cpu by default",
           read=_number("dump.threads", "number of threads", 0, MAX_THREADS)),
    Option(names=("--encrypt-to",), value="KEY", read=_recipients,
           help="encrypt to this public key of age(1), as a stream; may be given several times"),
    Option(names=("--no-checksums",), read=_sets(dump__checksums=False), in_config=True,
           help="take no sha256 of what is written"),
    Option(names=("--no-verify",), read=_sets(dump__verify=False), in_config=True,
           help="do not read the dump back before it gets its name"),
    Option(names=("-f", "--force"), read=_sets(force=True), in_config=True, help="replace OUT"),
    Option(names=("-x", "--vmlinux"), value="VMLINUX", read=lambda text: {"vmlinux": text},
           help="symbols and offsets that VMCOREINFO lacks come from here"),
    Option(names=("--dry-run",), read=_sets(dry_run=True), help="say what would be written, and write nothing"),
    Option(names=("--show-stats",), read=_sets(show_stats=True), in_config=True, help="count the pages by class"),
    Option(names=("--json",), read=_sets(json=True), help="say the result as one JSON object"),
    Option(names=("--message-level",), value="N", read=_messages, in_config=True,
           help="the sum of: 1 progress, 2 common, 4 error, 8 debug, 16 report; 7 by default"),
    Option(names=("--split",), read=_verb(Verb.SPLIT), help="write several files, each with a part of the pages"),
    Option(names=("--reassemble",), read=_verb(Verb.REASSEMBLE), help="make one dump of those of --split"),
    Option(names=("-R", "--rearrange"), read=_verb(Verb.REARRANGE),
           help="make a dump of the stream on standard input, as far as it came"),
    Option(names=("--dump-dmesg",), read=_verb(Verb.DMESG), help="write the kernel log instead of a dump"),
    Option(names=("--partial-dmesg",), read=_verb(Verb.PARTIAL_DMESG),
           help="write the kernel log since it was last cleared (dmesg -C)"),
    Option(names=("--mem-usage",), read=_verb(Verb.MEM_USAGE),
           help="count the pages by class, of /proc/kcore or any VMCORE"),
    Option(names=("--verify",), read=_verb(Verb.VERIFY), help="check a dump, whoever wrote it"),
    Option(names=("--check-params",), read=_verb(Verb.CHECK), help="check the command line only"),
    Option(names=("-v", "-V", "--version"), read=_verb(Verb.VERSION), help="show the version"),
    Option(names=("-h", "--help"), read=_verb(Verb.HELP), help="show this"),
    Option(names=("-b",), value="ORDER", in_config=True, no_effect=_OUR_MEMORY),
    Option(names=("--cyclic-buffer",), value="KB", in_config=True, no_effect=_OUR_MEMORY),
    Option(names=("--work-dir",), value="DIR", in_config=True, no_effect=_OUR_MEMORY),
    Option(names=("--non-mmap",), in_config=True, no_effect="memory that cannot be mapped is read anyway"),
    Option(names=("--splitblock-size",), value="KB", no_effect="the parts of --split hold equally many pages"),
    Option(names=("-D",), in_config=True, no_effect="--message-level 15 says more"),
    Option(names=("-L",), value="SIZE", why_not="give -d a list of levels, the first that fits is taken"),
    Option(names=("-i",), value="FILE", why_not=_NO_INFO),
    Option(names=("-g",), value="FILE", why_not=_NO_INFO),
    Option(names=("-e",), why_not="crash(8) needs the memory map even of the pages that are left out"),
    Option(names=("--vtop",), value="ADDRESS", why_not="crash(8) does it: 'vtop ADDRESS'"),
    Option(names=("-X",), why_not=_NO_XEN),
    Option(names=("--xen-syms",), value="FILE", why_not=_NO_XEN),
    Option(names=("--xen-vmcoreinfo",), value="FILE", why_not=_NO_XEN),
    Option(names=("--xen_phys_start",), value="ADDRESS", why_not=_NO_XEN),
    Option(names=("--diskset",), value="FILE", why_not="dumps of sadump are not read"),
    Option(names=("--config",), value="FILE", why_not=_NO_ERASE),
    Option(names=("--eppic",), value="FILE", why_not=_NO_ERASE),
    Option(names=("--extension",), value="FILE", why_not="no code from outside decides which pages are kept"),
)  # fmt: skip

_BY_NAME = {name: option for option in OPTIONS for name in option.names}

_ENCRYPTED = (Verb.DUMP, Verb.DMESG, Verb.PARTIAL_DMESG, Verb.CHECK, Verb.HELP, Verb.VERSION)


class _Reader:
    """One pass over the words."""

    def __init__(self, words: Sequence[str], *, in_config: bool) -> None:
        self._words = list(words)
        self._in_config = in_config
        self._fields: Changes = {}
        self._given: dict[str, str] = {}
        self.problems: list[str] = []
        self.without_effect: list[str] = []
        self.operands: list[str] = []
        self._recipients: tuple[str, ...] = ()

    def read(self) -> CollectorOptions:
        while self._words:
            word = self._words.pop(0)
            if word == "--":
                self.operands.extend(self._words)
                break
            if word.startswith("--"):
                self._long(word)
            elif word.startswith("-") and word != "-":
                self._short(word)
            else:
                self.operands.append(word)
        dump = {name[5:]: value for name, value in self._fields.items() if name.startswith("dump.")}
        rest = {name: value for name, value in self._fields.items() if not name.startswith("dump.")}
        settings = dataclasses.replace(DumpSettings(), **dump)  # type: ignore[arg-type]  # the table's names are fields
        self._check(settings)
        if self._recipients and self._fields.get("verb", Verb.DUMP) not in _ENCRYPTED:
            self.problems.append("option '--encrypt-to' is for a dump or a log, each in one file")
        options = CollectorOptions(
            dump=settings,
            operands=tuple(self.operands),
            without_effect=tuple(self.without_effect),
            problems=tuple(self.problems),
        )
        return dataclasses.replace(options, **rest)  # type: ignore[arg-type]  # as above

    def _long(self, word: str) -> None:
        name, equals, value = word.partition("=")
        names = [name] if name in _BY_NAME else [each for each in _BY_NAME if each.startswith(name)]
        if len(names) != 1:
            like = f": {', '.join(names)}" if names else ""
            self.problems.append(f"option '{name}' is {'ambiguous' if names else 'not known'}{like}")
            return
        option = _BY_NAME[names[0]]
        if option.value is None:
            if equals:
                self.problems.append(f"option '{names[0]}' takes no value, '{value}' was given")
                return
        elif not equals:
            if not self._words:
                self.problems.append(f"option '{names[0]}' needs a value: {option.value}")
                return
            value = self._words.pop(0)
        self._apply(names[0], option, value)

    def _short(self, word: str) -> None:
        letters = word[1:]
        while letters:
            name, letters = f"-{letters[0]}", letters[1:]
            option = _BY_NAME.get(name)
            if option is None:
                self.problems.append(f"option '{name}' is not known" + (f" (in '{word}')" if word != name else ""))
                return
            value = ""
            if option.value is not None:
                if not letters and not self._words:
                    self.problems.append(f"option '{name}' needs a value: {option.value}")
                    return
                value, letters = letters or self._words.pop(0), ""
            self._apply(name, option, value)

    def _apply(self, name: str, option: Option, value: str) -> None:
        if option.why_not is not None:
            self.problems.append(f"option '{name}' is not available: {option.why_not}")
        elif self._in_config and not option.in_config:
            self.problems.append(f"option '{name}' has no place in kdump.conf")
        elif option.no_effect is not None:
            self.without_effect.append(f"option '{name}' changes nothing: {option.no_effect}")
        else:
            try:
                changes = option.read(value)
            except _BadValueError as error:
                self.problems.append(str(error))
                return
            for field, new in changes.items():
                if field in ("verb", "dump.compression") and self._fields.get(field, new) != new:
                    self.problems.append(f"options '{self._given[field]}' and '{name}' exclude each other")
                self._given[field] = name
            if "encrypt_to" in changes:  # each one adds to those before
                self._recipients = tuple(dict.fromkeys((*self._recipients, *recipient_keys(value))))
                changes = {"encrypt_to": self._recipients}
            self._fields.update(changes)

    def _check(self, settings: DumpSettings) -> None:
        if settings.compression_level is not None:
            bounds = COMPRESSION_LEVELS.get(settings.compression)
            if bounds is None:
                self.problems.append(f"'{settings.compression}' has no compression levels; -z and -c do")
            elif not bounds[0] <= settings.compression_level <= bounds[1]:
                self.problems.append(
                    f"compression level '{settings.compression_level}' of {settings.compression} is not a number "
                    f"from {bounds[0]} to {bounds[1]}"
                )
        if settings.elf and settings.compression is not Compression.NONE:
            self.problems.append(f"option '-E' excludes '{self._given['dump.compression']}': ELF files are not packed")


def parse_words(words: Sequence[str]) -> CollectorOptions:
    """A command line of kdumpd-collect, without the program's name."""
    return _Reader(words, in_config=False).read()


def parse_core_collector(value: str) -> CollectorOptions:
    """The value of kdump.conf's `core_collector`: the program, and its options without file names."""
    program, *words = value.split() or [""]
    reader = _Reader(words, in_config=True)
    if program.rpartition("/")[2] not in PROGRAMS:
        reader.problems.append(
            f"core_collector '{program}' is not available; use makedumpfile's options, or external {program}"
        )
        return CollectorOptions(problems=tuple(reader.problems))
    options = reader.read()
    if options.operands:
        problem = f"core_collector has the word '{options.operands[0]}', which is no option"
        options = dataclasses.replace(options, operands=(), problems=(*options.problems, problem))
    return options


def external_collector(words: Sequence[str]) -> DumpSettings:
    """What follows `core_collector external`: a program, by its name or its path, and its arguments without file names.
    Raises ValueError."""
    if not words or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*|/[^\s\x00-\x1f]+", words[0]):
        raise ValueError("core_collector external is followed by a program's name or path, and its arguments")
    if ".." in words[0].split("/"):
        raise ValueError(f"'{words[0]}' has '..' in it")
    known = parse_core_collector(" ".join(words))
    # For the manifest, where level and compression can be known; it is the program that has to understand all of it.
    dump = known.dump if not known.problems else DumpSettings()
    return dataclasses.replace(dump, external=tuple(words), checksums=True, verify=True)
