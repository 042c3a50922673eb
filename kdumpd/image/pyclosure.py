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
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kdumpd
from kdumpd.config.model import Compression, DumpSettings
from kdumpd.errors import BuildError

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

_SECONDS = 300
# A line that can begin an import, to the end of its list of names. Not seen: one behind a colon or a semicolon, or one
# that goes on behind a backslash. (Texts: the service, which never looks for imports, would keep them compiled.)
_IMPORT = rb"(?m)^[ \t]*((?:from[ \t]+[.\w]+[ \t]+import|import)\b(?:[^\n(]*\([^)]*\)|[^\n]*))"
_TWO_ON_A_LINE = rb"(?m)[;:\\][ \t]*(?:from|import)[ \t]|^[ \t]*(?:from|import)\b[^\n]*\\\n"

# Runs with -I -S -B: no environment, no .pth files and nothing written, so that only the collector's own
# imports are seen and the host is left as it was. Where byte code has a folder of its own, it is written.
_PROBE = """
import importlib, importlib.machinery, importlib.util, json, sys
sys.dont_write_bytecode = sys.pycache_prefix is None
request = json.load(sys.stdin)
class Finder:
    def find_spec(name, path, target=None):
        if name not in request["left_out"]:
            if request["left_out"] and name in request["absent"]:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return None
        # No location: what stands in here is put into the image under the name of what it stands for.
        loader = importlib.machinery.SourceFileLoader(name, request["stand_in"])
        return importlib.machinery.ModuleSpec(name, loader)
sys.meta_path.insert(0, Finder)
import site
sys.path.extend(path for path in site.getsitepackages() if not path.startswith("/usr/local/"))
sys.path[:0] = request["path"]
for name in request["needed"]:
    try:
        module = importlib.import_module(name)
        if module.__spec__.origin is None:
            # An empty folder is a package too, for Python.
            raise ImportError(f"{[*module.__path__][0]} holds no module", name=name)
    except ImportError as error:
        print(json.dumps({"missing": error.name or name, "wanted": name, "why": str(error)}))
        sys.exit(0)
for name, function in request["called"]:
    getattr(importlib.import_module(name), function)()  # what is only loaded when it is used
for name, attributes in request["optional"]:
    try:
        module = importlib.import_module(name)
    except ImportError:
        continue
    for attribute in attributes:
        getattr(module, attribute, None)  # some packages import on first use (concurrent.futures)
files = {}
for module in list(sys.modules.values()):
    spec = getattr(module, "__spec__", None)
    path = getattr(module, "__file__", None)
    if path:
        files[path] = getattr(spec, "cached", None)
left_out = {}
for name in set(request["left_out"]) & set(sys.modules):
    package, _, last = name.rpartition(".")
    left_out[name] = f"{sys.modules[package].__path__[0]}/{last}.py"
with open("/proc/self/maps") as maps:
    mapped = sorted({line.split(None, 5)[5].strip() for line in maps if ".so" in line})
print(json.dumps({"files": files, "left_out": left_out, "mapped": mapped, "executable": sys.executable,
                  "magic": importlib.util.MAGIC_NUMBER.hex()}))
"""


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
) -> PythonClosure:
    """Imports `modules` of the kdumpd in `package_dir`; of the packages in ON_REQUEST only those `requested`.

    Raises BuildError naming a module that is missing.
    """
    for name in requested:
        if name != DEFLATE:
            _require(interpreter, name)
    try:
        answer = _probe(interpreter, package_dir, modules, requested, LEFT_OUT_MODULES)
        reason = f"module {answer['missing']} is missing" if "missing" in answer else None
    except BuildError as error:
        reason = error.sentence
    if reason is not None:
        # Perhaps another numpy needs what is left out here: a larger image beats none.
        answer = _probe(interpreter, package_dir, modules, requested, ())
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
    request = {
        "called": [],
        "path": [str(PACKAGE_DIR.parent)],
        "left_out": (),
        "stand_in": str(LEFT_OUT),
        "needed": [*wanted, module],
        "optional": list(late.items()),
    }
    answer = run_python(interpreter, _PROBE, request, f"finding the Python modules of {module}")
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


def run_python(interpreter: str, script: str, request: object, purpose: str) -> Any:
    """Runs `script` in `interpreter`, JSON in and JSON out. Raises BuildError when it fails."""
    try:
        done = subprocess.run(
            [interpreter, "-I", "-S", "-B", "-c", script],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OPENBLAS_NUM_THREADS": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{purpose} failed: {error}", hint=f"{interpreter} must run") from error
    lines = done.stderr.strip().splitlines()
    if done.returncode != 0:
        reason = lines[-1] if lines else f"{interpreter} ended with status {done.returncode}"
        raise BuildError(f"{purpose} failed: {reason}", hint=f"{interpreter} must run and be whole")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise BuildError(f"{purpose} failed: {interpreter} gave no answer: {error}") from error


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


def _probe(
    interpreter: str, package_dir: Path, modules: Sequence[str], requested: Sequence[str], left_out: Sequence[str]
) -> Any:
    files = own_files(package_dir)
    try:
        late = imports_in(files)
    except (OSError, SyntaxError) as error:
        raise BuildError(f"the collector's sources cannot be read: {error}", hint="install kdumpd again") from error
    unwanted = ON_REQUEST.keys() - set(requested)
    late = {
        name: names
        for name, names in late.items()
        if name.partition(".")[0] not in unwanted and _NEEDS.get(name) not in unwanted
    }
    own = [name for name in own_modules(files, package_dir) if _NEEDS.get(name) not in unwanted]
    request = {
        "called": [ON_REQUEST[name] for name in requested],
        "path": [str(package_dir.parent)],
        "left_out": left_out,
        "absent": ABSENT_MODULES,
        "stand_in": str(LEFT_OUT),
        "needed": [*RUNTIME_MODULES, *modules, *own],
        "optional": [*((name, []) for name in OPTIONAL_MODULES), *late.items()],
    }
    return run_python(interpreter, _PROBE, request, "finding the collector's Python modules")


def _is_below(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder)
