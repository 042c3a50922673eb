# SPDX-License-Identifier: GPL-2.0-or-later
"""Which Python files the collector needs, found by importing it in a fresh interpreter.

kdumpd's own rooms are taken whole, so that an import made late never fails in the capture kernel. Says only
what is needed; turning sources into byte code is the business of `bytecode`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kdumpd
from kdumpd.config.model import Compression, DumpSettings
from kdumpd.errors import BuildError
from kdumpd.image.probe import Probe, run_python

INTERPRETER = "/usr/bin/python3"
PACKAGE_DIR = Path(kdumpd.__file__).resolve().parent

# What the collector imports, now or later in its run.
COLLECTOR_MODULES = ("kdumpd.collector.__main__", "kdumpd.collector.capture")
# What the interpreter itself reaches for: to start with -m, to decode, to print a traceback.
RUNTIME_MODULES = (
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "linecache",
    "mmap",
    "numpy",
    "pkgutil",
    "runpy",
    "site",
    "traceback",
    "zstandard",
)
# Called by name from numpy's C code, long after its import, where they lie depends on numpy's version; and the
# libraries of codecs that kdump.conf may ask for, where they are installed.
OPTIONAL_MODULES = (
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("_dtype", "_dtype_ctypes", "_exceptions", "_internal", "_methods", "_ufunc_config")
    ),
    "lzo",
    "snappy",
)
# Packages for what few configurations ask for, and what loads all that is needed of them: a module, a function of it.
# DEFLATE is no package: these libraries pack faster than zlib's, and are taken where they are installed.
DEFLATE = "deflate"
ON_REQUEST = {
    DEFLATE: ("kdumpd.dumpfile.packing", "try_zlib"),
    "cryptography": ("kdumpd.dumpfile.sealed", "try_out"),
    "paramiko": ("kdumpd.targets.ssh", "try_out"),
}
# Modules of the collector that import one of these as they are imported themselves.
_NEEDS = {"kdumpd.targets.ssh": "paramiko"}
# Parts that numpy imports and the collector does not use (left_out.py). numpy.core became numpy._core in 2.0.
LEFT_OUT_MODULES = (
    *(f"numpy.{part}" for part in ("ctypeslib", "fft", "linalg", "ma", "polynomial", "random", "testing")),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("_add_newdocs", "_add_newdocs_scalars")),
)
# What shutil and numpy use if it is there, for archives: nobody makes any, and it brings two libraries.
ABSENT_MODULES = ("bz2", "lzma")
LEFT_OUT = PACKAGE_DIR / "image" / "left_out.py"
CAPTURE_ROOMS = ("__init__.py", "errors.py", "config", "vmcore", "dumpfile", "targets", "collector")

# A line that can begin an import, to the end of its list of names. Not seen: one behind a colon or a semicolon, or one
# that goes on behind a backslash. (Texts: the service, which never looks for imports, would keep them compiled.)
_IMPORT = rb"(?m)^[ \t]*((?:from[ \t]+[.\w]+[ \t]+import|import)\b(?:[^\n(]*\([^)]*\)|[^\n]*))"
_TWO_ON_A_LINE = rb"(?m)[;:\\][ \t]*(?:from|import)[ \t]|^[ \t]*(?:from|import)\b[^\n]*\\\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PythonClosure:
    """What an interpreter loaded: sources with their cached byte code, extension modules, mapped libraries.

    `own` are the files of kdumpd itself. `left_out` are the places where left_out.py stands in for a module. `magic`
    marks the byte code this interpreter reads. `notes` are sentences on what did not go as it should.
    """

    executable: Path
    magic: bytes
    sources: Mapping[str, str | None]
    extensions: tuple[str, ...]
    mapped: tuple[str, ...]
    own: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A search that has begun: `probe` imports, `late` is what `imports_in` found in the collector meanwhile."""

    probe: Probe
    late: Mapping[str, list[str]]


def installed_optional() -> tuple[str, ...]:
    """Those of the codecs' libraries that there are now."""
    return tuple(name for name in OPTIONAL_MODULES if "." not in name and importlib.util.find_spec(name) is not None)


def requested_by(dump: DumpSettings) -> tuple[str, ...]:
    """What of ON_REQUEST packs pages as `dump` wants them."""
    packs_with_zlib = dump.compression is Compression.ZLIB and not dump.elf and not dump.external
    return (DEFLATE,) if packs_with_zlib else ()


def find_closure(
    interpreter: str = INTERPRETER,
    package_dir: Path = PACKAGE_DIR,
    modules: Sequence[str] = COLLECTOR_MODULES,
    requested: Sequence[str] = (),
    prepared: Begun | None = None,
) -> PythonClosure:
    """Imports `modules` of the kdumpd in `package_dir`; of the packages in ON_REQUEST only those `requested`.

    `prepared` is what `start` gave for the same. Raises BuildError naming a module that is missing.
    """
    for name in requested:
        if name != DEFLATE:
            _require(interpreter, name)
    try:
        answer = _ask(prepared or start(interpreter, package_dir, modules), package_dir, requested)
        reason = f"module {answer['missing']} is missing" if "missing" in answer else None
    except BuildError as error:
        reason = error.sentence
    if reason is not None:
        # Perhaps another numpy needs what is left out here: a larger image beats none.
        answer = _ask(start(interpreter, package_dir, modules, ()), package_dir, requested)
    if "missing" in answer:
        raise BuildError(
            f"the collector cannot be put into the image: Python module {answer['missing']} is missing"
            f" ({answer['wanted']}: {answer['why']})",
            hint="install python3-numpy and python3-zstandard, or the kdumpd package again",
        )
    note = f"the image holds all of numpy, as it does not load in part: {reason}"
    return dataclasses.replace(
        _closure(answer, own_files(package_dir), package_dir), notes=() if reason is None else (note,)
    )


def _closure(answer: Any, own: Sequence[Path], package_dir: Path) -> PythonClosure:
    files: dict[str, str | None] = answer["files"]
    foreign = {path: cached for path, cached in files.items() if not _is_below(path, package_dir)}
    return PythonClosure(
        executable=Path(answer["executable"]),
        magic=bytes.fromhex(answer["magic"]),
        sources={path: cached for path, cached in sorted(foreign.items()) if path.endswith(".py")},
        extensions=tuple(sorted(path for path in foreign if not path.endswith((".py", ".pyc")))),
        mapped=tuple(answer["mapped"]),
        own=tuple(own),
        left_out=tuple(sorted(answer["left_out"].values())),
    )


def find_program(module: str, own: Sequence[Path], interpreter: str = INTERPRETER) -> PythonClosure:
    """What another program than the collector needs: `module`, which with all it imports of kdumpd lies in `own`.

    Raises BuildError naming a module that is missing.
    """
    wanted = [name for name in RUNTIME_MODULES if name not in ("numpy", "zstandard")]
    late = {name: names for name, names in imports_in(own).items() if name.partition(".")[0] in sys.stdlib_module_names}
    first = {
        "path": [str(PACKAGE_DIR.parent)],
        "left_out": (),
        "absent": (),
        "stand_in": str(LEFT_OUT),
        "needed": [*wanted, module],
    }
    with Probe(interpreter, first, f"finding the Python modules of {module}") as probe:
        answer = probe.ask({"needed": [], "called": [], "optional": list(late.items())})
    if "missing" in answer:
        raise BuildError(f"Python module {answer['missing']} is missing ({answer['wanted']}: {answer['why']})")
    return _closure(answer, own, PACKAGE_DIR)


def own_files(package_dir: Path = PACKAGE_DIR) -> tuple[Path, ...]:
    """The sources and data files of the rooms that live in the capture kernel."""
    found: list[Path] = []
    for room in CAPTURE_ROOMS:
        place = package_dir / room
        found.extend([place] if place.is_file() else place.rglob("*"))
    return tuple(sorted(path for path in found if path.suffix in {".py", ".json"} and path.is_file()))


def own_modules(files: Sequence[Path], package_dir: Path = PACKAGE_DIR) -> tuple[str, ...]:
    """The names to import the sources among `files` by."""
    names = []
    for path in files:
        if path.suffix == ".py":
            parts = path.relative_to(package_dir.parent).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return tuple(names)


def imports_in(files: Sequence[Path]) -> dict[str, list[str]]:
    """Every module that the sources name in an import anywhere, with the names taken from it.

    Importing a module does not run the imports inside its functions; the capture kernel may.
    """
    found: dict[str, set[str]] = {}
    for path in files:
        if path.suffix != ".py":
            continue
        for node in _imports(path.read_bytes(), str(path)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    found.setdefault(alias.name, set())
            elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
                found.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return {module: sorted(names) for module, names in sorted(found.items())}


def _imports(source: bytes, path: str) -> Iterator[ast.AST]:
    """The statements of `source` that import, and perhaps others. Raises SyntaxError."""
    # Parsing all of every file takes ten times as long as parsing the lines that can begin an import.
    lines = (
        b"\n".join(match[1] for match in re.finditer(_IMPORT, source))
        if not re.search(_TWO_ON_A_LINE, source)
        else None
    )
    if lines is not None:
        with contextlib.suppress(SyntaxError):  # a line of a text that looks like one: all of it is parsed
            yield from ast.parse(lines, path).body
            return
    yield from ast.walk(ast.parse(source, path))


def _require(interpreter: str, package: str) -> None:
    script = """
import importlib.util, json, site, sys
sys.path.extend(path for path in site.getsitepackages() if not path.startswith("/usr/local/"))
print(json.dumps(importlib.util.find_spec(json.load(sys.stdin)) is not None))
"""
    if not run_python(interpreter, script, package, f"looking for the Python module {package}"):
        raise BuildError(
            f"the collector cannot be put into the image: kdump.conf asks for what needs the Python module {package}",
            hint=f"install python3-{package}",
        )


def start(
    interpreter: str = INTERPRETER,
    package_dir: Path = PACKAGE_DIR,
    modules: Sequence[str] = COLLECTOR_MODULES,
    left_out: Sequence[str] | None = None,
) -> Begun:
    """Begins to import what every image has. Raises BuildError when the interpreter does not start."""
    first = {
        "path": [str(package_dir.parent)],
        "left_out": LEFT_OUT_MODULES if left_out is None else left_out,
        "absent": ABSENT_MODULES,
        "stand_in": str(LEFT_OUT),
        "needed": [*RUNTIME_MODULES, *modules, *(name for name in _own(package_dir) if name not in _NEEDS)],
    }
    probe = Probe(interpreter, first, "finding the collector's Python modules")
    try:
        return Begun(probe=probe, late=imports_in(own_files(package_dir)))
    except (OSError, SyntaxError) as error:
        probe.close()
        raise BuildError(f"the collector's sources cannot be read: {error}", hint="install kdumpd again") from error


def _own(package_dir: Path) -> tuple[str, ...]:
    return own_modules(own_files(package_dir), package_dir)


def _ask(begun: Begun, package_dir: Path, requested: Sequence[str]) -> Any:
    with begun.probe as probe:
        unwanted = ON_REQUEST.keys() - set(requested)
        late = {
            name: names
            for name, names in begun.late.items()
            if name.partition(".")[0] not in unwanted and _NEEDS.get(name) not in unwanted
        }
        rest = {
            "needed": [name for name in _own(package_dir) if name in _NEEDS and _NEEDS[name] not in unwanted],
            "called": [ON_REQUEST[name] for name in requested],
            "optional": [*((name, []) for name in OPTIONAL_MODULES), *late.items()],
        }
        return probe.ask(rest)


def _is_below(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder)
