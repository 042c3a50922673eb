# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl show-config, check-config, import-config: kdump.conf, without the service."""

from __future__ import annotations

import dataclasses
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdumpd.cli import output
from kdumpd.config.importers import Dialect, Imported, import_settings
from kdumpd.config.model import Config, Problem
from kdumpd.config.parse import DROPIN_DIR, config_files, parse_config, read_config
from kdumpd.crashes.text import printable
from kdumpd.errors import ConfigError, DeniedError, NotFoundError, os_reason
from kdumpd.host.files import below

_DROP_IN = f"/{DROPIN_DIR}/50-imported.conf"
_LIMIT_BYTES = 1 << 20
# Where the other tools keep their settings; RHEL's and SUSE's share a place and are told apart by what they hold.
_FOREIGN: Mapping[str, Dialect | None] = {"/etc/default/kdump-tools": Dialect.DEBIAN, "/etc/sysconfig/kdump": None}


def show(options: Namespace) -> int:
    """Prints what counts in the end, and which files were read. Complaints go to standard error."""
    config = read_config(options.root)
    files = ["/" + str(path.relative_to(options.root)) for path in config_files(options.root)]
    settings = _settings(config)
    if options.json != "off":
        problems = [dataclasses.asdict(problem) for problem in config.problems]
        output.print_json({"files": files, "settings": settings, "problems": problems}, options.json)
        return 0
    print(f"# {', '.join(files) or 'no file: all defaults'}")
    columns = max(map(len, settings))
    for name, value in settings.items():
        print(f"{name:<{columns}}  {printable(_text(value))}")
    _complain(config.problems)
    return 0


def check(options: Namespace) -> int:
    """Prints each complaint as FILE:LINE: sentence; 0 without any, 1 with one. Raises ConfigError."""
    if options.file is None:
        config = read_config(options.root)
    else:
        config = parse_config([(str(options.file), _read(options.file))])
    if options.json != "off":
        output.print_json([dataclasses.asdict(problem) for problem in config.problems], options.json)
    else:
        _complain(config.problems)
    return 1 if config.problems else 0


def import_config(options: Namespace) -> int:
    """Writes a drop-in made of another tool's settings, and names what could not be taken over. Raises KdumpError."""
    file, shown, dialect = _foreign(options.file, options.root)
    imported = import_settings(shown, _read(file), dialect)
    if imported.problems and not imported.lines:
        _complain(imported.problems)
        raise ConfigError(f"{shown} holds nothing that can be taken over")
    target = below(options.root, _DROP_IN)
    if not options.dry_run:
        _write(target, imported.to_text(), force=options.force)
    if options.json != "off":
        output.print_json(_facts(imported, written=not options.dry_run), options.json)
        return 0
    for line in imported.lines:
        print(line.text)
    _complain(imported.problems)
    if options.dry_run:
        print(f"Nothing was written; without --dry-run these lines go to {_DROP_IN}.", file=sys.stderr)
    else:
        print(f"Written to {_DROP_IN}; to use it: kdumpctl reload", file=sys.stderr)
    return 0


def _foreign(file: Path | None, root: Path) -> tuple[Path, str, Dialect | None]:
    """The file to import, its name for complaints, and whose it is if the place tells. Raises NotFoundError."""
    if file is not None:
        return file, str(file), Dialect.DEBIAN if file.name == "kdump-tools" else None
    for place, dialect in _FOREIGN.items():
        if below(root, place).exists():
            return below(root, place), place, dialect
    raise NotFoundError(f"There is neither {' nor '.join(_FOREIGN)}", hint="name the file: kdumpctl import-config FILE")


def _read(file: Path) -> str:
    """The text of a file that a person named. Raises ConfigError, DeniedError."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(_LIMIT_BYTES + 1)
        if len(data) > _LIMIT_BYTES:
            raise ConfigError(f"{file} is too long for a file of settings")
        return data.decode()
    except PermissionError as error:
        raise DeniedError(f"{file} may not be read", hint="use sudo") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: it is not UTF-8 text") from error


def _write(target: Path, text: str, *, force: bool) -> None:
    """A new file, whole or not at all. Raises ConfigError when there is one already."""
    temporary = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fsync(descriptor)
        if force:
            temporary.rename(target)
            return
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise ConfigError(f"{target} is there already", hint="to replace it: --force") from error
        finally:
            temporary.unlink()
    except PermissionError as error:
        raise DeniedError(f"{target} may not be written", hint="use sudo") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {os_reason(error)}") from error


def _facts(imported: Imported, *, written: bool) -> dict[str, Any]:
    return {
        "dialect": imported.dialect.value,
        "lines": [dataclasses.asdict(line) for line in imported.lines],
        "problems": [dataclasses.asdict(problem) for problem in imported.problems],
        "file": _DROP_IN if written else None,
    }


def _settings(config: Config) -> dict[str, Any]:
    """Every field but the complaints, in plain types."""
    values = dataclasses.asdict(config)
    del values["problems"]
    return values


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(part) for part in value.values() if part is not None)
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)


def _complain(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        kind = "error" if problem.fatal else "warning"
        print(f"{kind}: {output.wrap(str(problem), 2, begins=len(kind) + 2)}", file=sys.stderr)
