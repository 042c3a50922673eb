# SPDX-License-Identifier: GPL-2.0-or-later
"""Byte code without what only a person at a keyboard reads: run by `bytecode` in the interpreter that it is for.

Docstrings go, and of the table that leads from an instruction to its source the columns (PEP 657): a traceback keeps
its lines, and shows columns only where there are sources. That is a third of all byte code, which lies in the
capture kernel's memory otherwise. Imports nothing of kdumpd.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import marshal
import opcode
import os
import struct
import sys
from collections.abc import Sequence
from types import CodeType

_HEADER = 16
# code.co_flags of a function: CO_OPTIMIZED and CO_NEWLOCALS (Include/cpython/code.h).
_FUNCTION = 3
# Instead of a docstring. Without any, dataclasses make one out of the signature, which takes longer than all else that
# they do; and numpy wants one for its functions (add_docstring).
_NO_DOC = "-"
_WITH_CONSTANT = frozenset(opcode.hasconst)
_LOAD_CONST, _STORE_NAME = opcode.opmap["LOAD_CONST"], opcode.opmap["STORE_NAME"]


def cached_body(path: str, cached: str) -> bytes | None:
    """The code in the compiled file `cached` if it was made from the source `path` as it is now, else None."""
    try:
        with open(cached, "rb") as stream:
            data = stream.read()
        status = os.stat(path)
    except OSError:
        return None  # not compiled by the package: done here
    if len(data) <= _HEADER or data[:4] != importlib.util.MAGIC_NUMBER:
        return None
    flags, mtime, size = struct.unpack_from("<III", data, 4)
    if (flags, mtime, size) != (0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF):
        return None
    return data[_HEADER:]


def compiled(path: str, shown: str) -> bytes:
    """The code of the source `path` as a package would have compiled it. Raises OSError, SyntaxError."""
    with open(path, "rb") as source:
        return marshal.dumps(compile(source.read(), shown, "exec", dont_inherit=True, optimize=0))


def lean(code: CodeType, shown: str | None, *, tables: bool) -> CodeType:
    """`code` and all that is in it, as if it came from the source `shown`; with `tables`, those of lines made anew."""
    constants = [
        lean(value, shown, tables=tables) if isinstance(value, CodeType) else value for value in code.co_consts
    ]
    _forget(code, constants)
    return code.replace(
        co_consts=tuple(constants),
        co_filename=code.co_filename if shown is None else shown,
        co_linetable=line_table(code) if tables else code.co_linetable,
    )


def _forget(code: CodeType, constants: list[object]) -> None:
    """Takes the docstring of `code` out of its constants, unless something else may use that constant."""
    instructions = code.co_code
    if code.co_flags & _FUNCTION == _FUNCTION:
        # The first constant, which no instruction loads; a function of which it is no docstring loads it.
        first = constants[0] if constants else None
        if isinstance(first, str) and not code.co_name.startswith("<") and not _uses(instructions, 0):
            constants[0] = _NO_DOC
        return
    if "__doc__" not in code.co_names or (name := code.co_names.index("__doc__")) > 255:
        return
    at = instructions.find(bytes((_STORE_NAME, name)))
    if at < 2 or instructions[at - 2] != _LOAD_CONST:
        return
    used = instructions[at - 1]
    if isinstance(constants[used], str) and _uses(instructions, used) == 1:
        constants[used] = _NO_DOC


def _uses(instructions: bytes, constant: int) -> int:
    """How many instructions may use that constant: those whose argument goes on in front (EXTENDED_ARG) count too."""
    found = 0
    for operation in _WITH_CONSTANT:
        pair = bytes((operation, constant))
        at = instructions.find(pair)
        while at >= 0:
            found += not at & 1
            at = instructions.find(pair, at + 1)
    return found


def line_table(code: CodeType) -> bytes:
    """`code.co_linetable` without columns, instructions of one line together (Objects/locations.md of CPython)."""
    out: list[bytes] = []
    start = 0
    known = code.co_firstlineno
    line: int | None = known
    for begin, _, here in code.co_lines():
        if here == line:
            continue
        if begin != start:
            out.append(_pieces[begin - start, None if line is None else line - known])
            if line is not None:
                known = line
        start, line = begin, here
    out.append(_pieces[len(code.co_code) - start, None if line is None else line - known])
    return b"".join(out)


class _Pieces(dict[tuple[int, int | None], bytes]):
    """Entries for so many bytes of instructions that lie so many lines behind those before, or come from no line."""

    def __missing__(self, key: tuple[int, int | None]) -> bytes:
        size, lines = key
        units = size >> 1
        counts = [8] * (units // 8) + ([units % 8] if units % 8 else [])
        if lines is None:
            done = bytes(0xF8 | count - 1 for count in counts)
        else:
            # No columns: code 13, and the difference as a number with its sign in the lowest bit, six bits a byte.
            rest, number = lines << 1 if lines >= 0 else -lines << 1 | 1, bytearray()
            while rest > 63:
                number.append(0x40 | rest & 63)
                rest >>= 6
            number.append(rest)
            done = b"".join(
                bytes((0xE8 | count - 1,)) + (b"\0" if place else number) for place, count in enumerate(counts)
            )
        self[key] = done
        return done


_pieces = _Pieces()


def lines(code: CodeType) -> list[tuple[int, int | None]]:
    """Where in `code` another line begins, and which."""
    found: list[tuple[int, int | None]] = []
    for start, _, line in code.co_lines():
        if not found or found[-1][1] != line:
            found.append((start, line))
    return found


def knows_tables() -> bool:
    """Whether this interpreter writes its tables of lines in the way that is known here: by a try."""
    gap = "\n" * 700
    code = compile(f"def f(a):\n  with a:\n    a = (1,{gap} a.b)\n  return [\n x for x in a]\n", "", "exec").co_consts[
        0
    ]
    try:
        return isinstance(code, CodeType) and lines(code.replace(co_linetable=line_table(code))) == lines(code)
    except (ValueError, IndexError):
        return False


def main(wanted: Sequence[tuple[str, str | None, str | None]]) -> dict[str, str]:
    """The code of each source (its place, what a traceback should name, where it may lie compiled), in base64."""
    tables = knows_tables()
    # marshal writes whether a string is interned. Those of one character are the same objects everywhere, and before
    # 3.12 not from the start: else the bytes would tell what was compiled here before.
    for number in range(256):
        sys.intern(chr(number))
    done = {}
    for path, shown, cached in wanted:
        body = cached_body(path, cached or importlib.util.cache_from_source(path))
        # Read back, also what was just compiled: then both give the same bytes.
        code = marshal.loads(body or compiled(path, shown or path))
        done[path] = base64.b64encode(marshal.dumps(lean(code, shown, tables=tables))).decode()
    return done


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
