# SPDX-License-Identifier: GPL-2.0-or-later
"""Byte code for the image: `os.pyc` in the place of `os.py`.

A capture kernel has neither the time to compile nor the memory to keep sources as well. Compiled files that are
there already are taken where they match their sources; the rest is compiled here. All of it loses what nobody reads
there (`lean_code`). No file keeps a time: the header says "hash, unchecked" (PEP 552), because no source lies
beside it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdumpd.errors import BuildError
from kdumpd.image.origin import Origin
from kdumpd.image.probe import run_python
from kdumpd.image.pyclosure import PythonClosure

_HERE = Origin()
_HEADER = 16
_PURPOSE = "compiling the collector"
_UNCHECKED_HASH = (1).to_bytes(4, "little")


def compiled(
    closure: PythonClosure, shown: Mapping[str, str], interpreter: str, origin: Origin = _HERE
) -> dict[str, bytes]:
    """Source path -> what goes into its .pyc, for the closure's sources and those named in `shown`.

    `shown` maps sources that lie elsewhere in the image to the path that a traceback should name. Raises
    BuildError when a source does not compile.
    """
    wanted: dict[str, tuple[str, str | None, str | None]] = {
        path: (origin.place(path), None if origin.is_here else path, cached) for path, cached in closure.sources.items()
    }
    wanted.update({path: (path, name, None) for path, name in shown.items()})
    program = Path(__file__).with_name("lean_code.py")
    try:
        text = program.read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError(f"{program} cannot be read: {error.strerror}", hint="install kdumpd again") from error
    jobs = [wanted[path] for path in sorted(wanted)]
    # Two processes, always the same half each: no byte is to tell of what else a process has seen.
    with ThreadPoolExecutor(1) as aside:
        half = aside.submit(run_python, interpreter, text, jobs[1::2], _PURPOSE)
        answer = run_python(interpreter, text, jobs[::2], _PURPOSE)
    answer |= half.result()
    head = closure.magic + _UNCHECKED_HASH + bytes(_HEADER - 8)
    return {path: head + base64.b64decode(answer[place]) for path, (place, _, _) in wanted.items()}
