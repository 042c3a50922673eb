# SPDX-License-Identifier: GPL-2.0-or-later
"""Byte code for the image: `os.pyc` in the place of `os.py`.

A capture kernel has neither the time to compile nor the memory to keep sources as well. The distribution's
own compiled files are taken where they match their sources; the rest is compiled here. No file keeps a time:
the header says "hash, unchecked" (PEP 552), because no source lies beside it. What is compiled here loses its
docstrings, which nobody reads there.
"""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Mapping

from kdumpd.image.origin import Origin
from kdumpd.image.pyclosure import PythonClosure, run_python

_HERE = Origin()
_HEADER = 16
_UNCHECKED_HASH = (1).to_bytes(4, "little")

_COMPILE = """
import ast, base64, json, marshal, sys
done = {}
for path, shown in json.load(sys.stdin):
    with open(path, "rb") as source:
        tree = ast.parse(source.read(), shown)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body.pop(0)
                if not node.body and not isinstance(node, ast.Module):
                    node.body.append(ast.copy_location(ast.Pass(), first))
    # As optimize=2 would have it, but for assert statements.
    code = compile(tree, shown, "exec", dont_inherit=True, optimize=0)
    done[path] = base64.b64encode(marshal.dumps(code)).decode()
print(json.dumps(done))
"""


def compiled(
    closure: PythonClosure, shown: Mapping[str, str], interpreter: str, origin: Origin = _HERE
) -> dict[str, bytes]:
    """Source path -> what goes into its .pyc, for the closure's sources and those named in `shown`.

    `shown` maps sources that lie elsewhere in the image to the path that a traceback should name. Raises
    BuildError when a source does not compile.
    """
    done: dict[str, bytes] = {}
    left: list[tuple[str, str]] = sorted(shown.items())
    for path, cached in closure.sources.items():
        body = None if cached is None else cached_body(origin.place(path), cached, closure.magic)
        if body is None:
            left.append((path, path))
        else:
            done[path] = body
    if left:
        answer = run_python(interpreter, _COMPILE, left, "compiling the collector")
        done.update({path: base64.b64decode(text) for path, text in answer.items()})
    head = closure.magic + _UNCHECKED_HASH + bytes(_HEADER - 8)
    return {path: head + body for path, body in done.items()}


def cached_body(path: str, cached: str, magic: bytes) -> bytes | None:
    """The code in the compiled file `cached` if it was made from the source `path` as it is now, else None."""
    try:
        with open(cached, "rb") as stream:
            data = stream.read()
        status = os.stat(path)
    except OSError:
        return None  # not compiled by the package: done here
    if len(data) <= _HEADER or data[:4] != magic:
        return None
    flags, mtime, size = struct.unpack_from("<III", data, 4)
    if (flags, mtime, size) != (0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF):
        return None
    return data[_HEADER:]
