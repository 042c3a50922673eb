# SPDX-License-Identifier: GPL-2.0-or-later
"""Fresh interpreters that answer a question in JSON: which files does an import bring in, for one.

The one that imports the collector is started before it is known what else it will be asked, since that takes as long as
it takes the builder to import itself.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from types import TracebackType
from typing import Any, Self

from kdumpd.errors import BuildError

_SECONDS = 300
_WORDS = ("-I", "-S", "-B", "-c")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OPENBLAS_NUM_THREADS": "1"}

# Runs with -I -S -B: no environment, no .pth files and nothing written, so that only the collector's own
# imports are seen and the host is left as it was. Where byte code has a folder of its own, it is written.
_SCRIPT = """
import importlib, importlib.machinery, importlib.util, json, sys
sys.dont_write_bytecode = sys.pycache_prefix is None
request = json.loads(sys.stdin.readline())
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
def load(names):
    for name in names:
        try:
            module = importlib.import_module(name)
            if module.__spec__.origin is None:
                # An empty folder is a package too, for Python.
                raise ImportError(f"{[*module.__path__][0]} holds no module", name=name)
        except ImportError as error:
            print(json.dumps({"missing": error.name or name, "wanted": name, "why": str(error)}))
            sys.exit(0)
load(request["needed"])
rest = json.loads(sys.stdin.readline())
load(rest["needed"])
for name, function in rest["called"]:
    getattr(importlib.import_module(name), function)()  # what is only loaded when it is used
for name, attributes in rest["optional"]:
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


class _Python:
    """A process that is told lines of JSON and answers in JSON. Leaving the block ends it."""

    def __init__(self, interpreter: str, script: str, purpose: str) -> None:
        """Has `interpreter` begin with `script`. Raises BuildError when it does not start."""
        self._interpreter = interpreter
        self._purpose = purpose
        try:
            self._process = subprocess.Popen(
                [interpreter, *_WORDS, script],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT,
            )  # fmt: skip
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, last: object) -> Any:
        """What it answers once it was told `last`. Raises BuildError when it fails."""
        try:
            said, complained = self._process.communicate(f"{json.dumps(last)}\n", timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failed(error) from error
        if self._process.returncode != 0:
            lines = complained.strip().splitlines()
            reason = lines[-1] if lines else f"{self._interpreter} ended with status {self._process.returncode}"
            raise BuildError(f"{self._purpose} failed: {reason}", hint=f"{self._interpreter} must run and be whole")
        try:
            return json.loads(said)
        except ValueError as error:
            raise BuildError(f"{self._purpose} failed: {self._interpreter} gave no answer: {error}") from error

    def _failed(self, error: Exception) -> BuildError:
        return BuildError(f"{self._purpose} failed: {error}", hint=f"{self._interpreter} must run")

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it was not told any more
                    pipe.close()


class Probe(_Python):
    """A process that has begun to import, and is asked about it with what it is to import besides."""

    def __init__(self, interpreter: str, first: object, purpose: str) -> None:
        """Has `interpreter` import what `first` names. Raises BuildError when it does not start."""
        super().__init__(interpreter, _SCRIPT, purpose)
        assert self._process.stdin is not None
        # One that has ended already is found out when it is asked.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps(first)}\n")
            self._process.stdin.flush()


def run_python(interpreter: str, script: str, request: object, purpose: str) -> Any:
    """Runs `script` in `interpreter`, JSON in and JSON out. Raises BuildError when it fails."""
    with _Python(interpreter, script, purpose) as python:
        return python.ask(request)
