# SPDX-License-Identifier: GPL-2.0-or-later
"""Byte code without docstrings and columns does what it did, and a traceback names the same lines."""

from __future__ import annotations

import dis
import importlib.util
import json
import marshal
import os
import subprocess
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy

from kdumpd.image import lean_code

_SOURCE = '''"""A module."""
import dataclasses

class Plain:
    """A class."""
    kept = "A class, still"

@dataclasses.dataclass
class Fact:
    """Two numbers."""
    first: int
    second: int = 0

def documented(value):
    """Doubles."""
    return [
        value
        for _ in range(2)
    ]

def repeats():
    """said twice"""
    return "said twice"

def letters():
    return list("x" for _ in range(2)), (lambda: "y")()

def fails(values):
    """Fails
    in its fifth line.
    """
    return (values[0] +
            values[1])
'''


def _every(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _every(value)


def _lean(source: str, shown: str = "/there/it.py") -> CodeType:
    code: CodeType = marshal.loads(marshal.dumps(compile(source, "/here/it.py", "exec", dont_inherit=True)))
    return lean_code.lean(code, shown, tables=True)


def _module(code: CodeType) -> Any:
    module = ModuleType("it")
    exec(code, module.__dict__)
    return module


def test_it_does_the_same_without_docstrings() -> None:
    module = _module(_lean(_SOURCE))
    assert (module.__doc__, module.documented.__doc__, module.letters.__doc__) == ("-", "-", None)
    assert (module.Plain.__doc__, module.Plain.kept, module.Fact.__doc__) == ("-", "A class, still", "-")
    assert module.documented(3) == [3, 3]
    assert module.Fact(1) == module.Fact(1, 0)
    assert module.repeats() == "said twice"
    assert module.letters() == (["x", "x"], "y")


def test_a_traceback_names_the_lines_of_the_source_shown() -> None:
    code = _lean(_SOURCE)
    assert {part.co_filename for part in _every(code)} == {"/there/it.py"}
    failing = _module(code).fails
    try:
        failing([1, "a"])
    except TypeError as error:
        found = traceback.extract_tb(error.__traceback__)[-1]
    assert (found.filename, found.lineno) == ("/there/it.py", _SOURCE.splitlines().index("    return (values[0] +") + 1)


def test_all_of_the_library_and_numpy_keep_their_lines_and_instructions() -> None:
    folders = [Path(sysconfig.get_path("stdlib")), Path(numpy.__file__).parent]
    sources = [path for folder in folders for path in sorted(folder.glob("*.py")) + sorted(folder.glob("core/*.py"))]
    before = after = 0
    assert len(sources) > 200
    for path in sources[::3]:
        code = marshal.loads(lean_code.compiled(str(path), str(path)))
        lean = lean_code.lean(code, None, tables=True)
        before, after = before + len(marshal.dumps(code)), after + len(marshal.dumps(lean))
        for old, new in zip(_every(code), _every(lean), strict=True):
            assert old.co_code == new.co_code
            assert lean_code.lines(old) == lean_code.lines(new), f"{path}: {old.co_qualname}"
            used = {each.arg for each in dis.get_instructions(old) if each.opcode in lean_code._WITH_CONSTANT}
            changed = [at for at, pair in enumerate(zip(old.co_consts, new.co_consts, strict=True)) if _differ(*pair)]
            assert all(new.co_consts[at] == "-" or at not in used for at in changed), f"{path}: {old.co_qualname}"
    assert after < 0.75 * before


def _differ(old: object, new: object) -> bool:
    return not isinstance(old, CodeType) and old is not new and old != new


def test_what_lies_compiled_gives_the_bytes_that_compiling_gives(tmp_path: Path) -> None:
    source = tmp_path / "it.py"
    source.write_text(_SOURCE)
    wanted = [(str(source), "/there/it.py", None)]
    anew = lean_code.main(wanted)
    place = Path(importlib.util.cache_from_source(str(source)))
    place.parent.mkdir()
    status = source.stat()
    header = importlib.util.MAGIC_NUMBER + bytes(4) + int(status.st_mtime).to_bytes(4, "little")
    body = lean_code.compiled(str(source), str(source))
    place.write_bytes(header + status.st_size.to_bytes(4, "little") + body)
    assert lean_code.cached_body(str(source), str(place)) == body
    assert lean_code.main(wanted) == anew
    # A source that changed since is compiled.
    source.write_text(_SOURCE + "last = 1\n")
    os.utime(source, (status.st_atime, status.st_mtime + 5))
    assert lean_code.cached_body(str(source), str(place)) is None
    assert lean_code.main(wanted) != anew


def test_the_bytes_do_not_tell_what_the_process_did_before(tmp_path: Path) -> None:
    """Somebody may have interned a string of one character, which is one object wherever it stands."""
    source = tmp_path / "it.py"
    source.write_text("A = ['-', '\\xe9', 'x y', ('+', 1.5)]\ndef f():\n    'doc'\n    return '%', ''\n")
    program = Path(lean_code.__file__).read_text()
    wanted = json.dumps([(str(source), None, None)])
    answers = {
        subprocess.run(
            ["/usr/bin/python3", "-I", "-S", "-B", "-c", before + program.replace("from __future__", "#")],
            input=wanted, capture_output=True, text=True, check=True,
        ).stdout
        for before in ("", "import sys; [sys.intern(text) for text in ('-', '+', '%', 'x y', '')]\n")
    }  # fmt: skip
    assert len(answers) == 1


def test_tables_that_are_not_known_stay_as_they_are() -> None:
    assert lean_code.knows_tables()
    code = compile(_SOURCE, "/here/it.py", "exec", dont_inherit=True)
    assert lean_code.lean(code, None, tables=False).co_linetable == code.co_linetable
