"""Options from a file: ``--config FILE.json`` or ``.toml``, and ``--print-config``.

A file holds either the options of one command or one section per command::

    {"rows": 1000000, "out": "rows.npy"}

    [generate]
    rows = 1000000
    [infer]
    what = "leave-one-out"

Names are those of the command line without the dashes in front. The command line wins.
"""

from __future__ import annotations

import argparse
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfilter.cli.options import family_defaults
from hfilter.errors import ArgumentError, DataError
from hfilter.experiments.artefacts import plain

__all__ = ["add_common", "dump", "parse", "read"]

# Options which are about this one call and not about the work.
_NOT_STORED = {"help", "config", "print_config", "traceback"}


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every command has."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="defaults of any option, .json or .toml"
    )
    group.add_argument(
        "--print-config",
        action="store_true",
        help="print all options but those left to a preset as such a JSON file, and stop",
    )
    group.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an error"
    )


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {a.dest: a for a in parser._actions if a.dest not in _NOT_STORED}


def read(path: Path, command: str, commands: Sequence[str]) -> dict[str, Any]:
    """Return the options of ``command`` in a file, with underscores in their names.

    Raises
    ------
    DataError
        The file is missing, or not JSON or TOML by its name and content.
    """
    try:
        content = path.read_bytes().decode("utf-8")
        if path.suffix == ".toml":
            values = tomllib.loads(content)
        elif path.suffix == ".json":
            values = json.loads(content)
        else:
            raise DataError(f"--config {path}: want a file named .json or .toml")
    except FileNotFoundError as error:
        raise DataError(f"--config {path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"--config {path}: cannot be read ({error})") from error
    if not isinstance(values, Mapping):
        raise DataError(f"--config {path}: want a table of options, got {type(values).__name__}")
    flat = {key: value for key, value in values.items() if key not in commands}
    section = values.get(command, {})
    if not isinstance(section, Mapping):
        raise DataError(f"--config {path}: section {command} must be a table of options")
    return {str(key).replace("-", "_"): value for key, value in {**flat, **section}.items()}


def _convert(path: Path, action: argparse.Action, key: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise ArgumentError(f"--config {path}: {key} must be true or false, got {value!r}")
        return value
    listed = isinstance(value, list) and action.type is None
    if listed and not any(isinstance(part, bool | list | dict | None) for part in value):
        value = ",".join(map(str, value))  # as on the command line: --checkpoint-at 1,10,100
    if isinstance(value, bool | list | dict):
        raise ArgumentError(f"--config {path}: {key} must be one value, got {value!r}")
    try:
        converted = action.type(str(value)) if callable(action.type) else str(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ArgumentError(f"--config {path}: {key} = {value!r}: {error}") from error
    if action.choices is not None and converted not in action.choices:
        names = ", ".join(map(str, action.choices))
        raise ArgumentError(f"--config {path}: {key} must be one of {names}, got {value!r}")
    return converted


def parse(
    parser: argparse.ArgumentParser,
    commands: Mapping[str, argparse.ArgumentParser],
    argv: Sequence[str],
) -> argparse.Namespace:
    """Parse ``argv`` with the defaults of its ``--config``, and check what is required."""
    arguments = parser.parse_args(argv)
    command = commands[arguments.command]
    try:
        if arguments.config is not None:
            options = _options(command)
            defaults = {}
            for key, value in read(arguments.config, arguments.command, list(commands)).items():
                if key not in options:
                    close = difflib.get_close_matches(key, options, 1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    raise ArgumentError(
                        f"--config {arguments.config}: "
                        f"{arguments.command} has no option {key}{hint}"
                    )
                defaults[key] = _convert(arguments.config, options[key], key, value)
            command.set_defaults(**defaults)
            arguments = parser.parse_args(argv)
    except (ArgumentError, DataError) as error:
        command.error(str(error))
    missing = [name for name in arguments.required if getattr(arguments, name) is None]
    if missing and not arguments.print_config:
        names = ", ".join((_options(command)[n].option_strings or [n.upper()])[0] for n in missing)
        command.error(f"required (here or in --config FILE): {names}")
    return arguments


def dump(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Return the options as JSON which ``--config`` reads back, the grammar family's included."""
    values = {name: getattr(arguments, name) for name in _options(parser)}
    values.update(family_defaults(arguments))
    stored = {name: value for name, value in values.items() if value is not None}
    return json.dumps({arguments.command: plain(stored)}, indent=2)
