"""What several commands share: number formats, the grammar on the command line, the tree."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfilter.errors import ArgumentError, DataError
from hfilter.exact import TreeModel
from hfilter.grammar import Grammar

__all__ = [
    "Formatter",
    "add_backend",
    "add_model",
    "count",
    "family_defaults",
    "grammar_from",
    "model_from",
    "npy_name",
    "options_of",
    "positive",
]


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keep the examples as they are written, and show every default worth showing."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=30, **options)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        shown = action.default is not None and not isinstance(action.default, bool)
        if shown and action.default != argparse.SUPPRESS and "default" not in text:
            return f"{text} (default: %(default)s)"
        return text


def count(text: str) -> int:
    """Return a whole number >= 0, also written ``1e7`` or ``10_000_000``.

    Examples
    --------
    >>> count("1e7"), count("10_000")
    (10000000, 10000)
    """
    try:
        value = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        # 2**53: beyond it "1e17" would not mean the digits it shows.
        if not number.is_integer() or abs(number) > 2**53:
            raise argparse.ArgumentTypeError(f"want a whole number, got {text!r}") from None
        value = int(number)
    if value < 0:
        raise argparse.ArgumentTypeError(f"want a number >= 0, got {value}")
    return value


def positive(text: str) -> int:
    """Return a whole number >= 1."""
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"want a number >= 1, got {value}")
    return value


def npy_name(path: Path, option: str) -> Path:
    """Return ``path`` if it is a name for an array."""
    if path.suffix != ".npy":
        raise ArgumentError(f"{option} must be named .npy, got {path}")
    return path


_REQUIRED = object()


@dataclass(frozen=True)
class _Family:
    """A constructor of :class:`Grammar`, and which options it takes with which defaults."""

    make: Callable[..., Grammar]
    options: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)  # option -> argument, where they differ


_SEED = {"grammar_seed": "seed"}
_FAMILIES: dict[str, _Family] = {
    "published": _Family(
        Grammar.published,
        {"vocab_size": 4, "sigma": 1.0, "grammar_seed": 0, "rules_per_symbol": None},
        _SEED,
    ),
    "log-normal": _Family(
        Grammar.log_normal,
        {"vocab_size": 4, "sigma": 1.0, "grammar_seed": 0, "rules_per_symbol": None, "arity": 2},
        _SEED,
    ),
    "random-hierarchy": _Family(
        Grammar.random_hierarchy,
        {
            "vocab_size": 4,
            "rules_per_symbol": _REQUIRED,
            "n_classes": _REQUIRED,
            "arity": 2,
            "grammar_seed": 0,
            "depth": 4,
        },
        _SEED,
    ),
    "dense": _Family(
        Grammar.dense,
        {"vocab_size": 4, "concentration": 1.0, "grammar_seed": 0, "arity": 2},
        _SEED,
    ),
    "broadcast": _Family(Grammar.broadcast, {"vocab_size": 4, "eigenvalue": _REQUIRED, "arity": 2}),
    "parity": _Family(Grammar.parity, {"arity": 2}),
}
_GRAMMAR_OPTIONS = (
    "vocab_size",
    "sigma",
    "grammar_seed",
    "rules_per_symbol",
    "arity",
    "n_classes",
    "concentration",
    "eigenvalue",
)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options which name a grammar and a tree."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--grammar",
        default="published",
        metavar="NAME|FILE",
        help=f"a family ({', '.join(_FAMILIES)}) or a file of Grammar.save",
    )
    group.add_argument("--vocab-size", type=positive, metavar="Q", help="symbols (default: 4)")
    group.add_argument("--sigma", type=float, metavar="S", help="log-normal spread (default: 1.0)")
    group.add_argument(
        "--grammar-seed", type=count, metavar="N", help="which grammar of the family (default: 0)"
    )
    group.add_argument(
        "--rules-per-symbol", type=positive, metavar="R", help="rules of each parent"
    )
    group.add_argument(
        "--arity", type=positive, metavar="S", help="children of a node (default: 2)"
    )
    group.add_argument("--n-classes", type=positive, metavar="N", help="root symbols")
    group.add_argument(
        "--concentration", type=float, metavar="C", help="of the Dirichlet law (default: 1.0)"
    )
    group.add_argument(
        "--eigenvalue", type=float, metavar="L", help="second eigenvalue of the broadcast channel"
    )
    group.add_argument("--depth", type=positive, default=4, help="levels below the root")
    group.add_argument(
        "--filter-level",
        type=count,
        default=0,
        metavar="K",
        help="0: full hierarchy; DEPTH: leaves independent given the root",
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add where the work runs."""
    group = parser.add_argument_group("execution")
    group.add_argument("--backend", metavar="NAME", help="one of `hfilter info`; default: the best")
    group.add_argument("--num-threads", type=positive, metavar="N", help="default: all cores")
    group.add_argument("--quiet", action="store_true", help="no progress, no summary")


def family_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the grammar options that were not given, with what the family takes for them."""
    family = _FAMILIES.get(str(getattr(arguments, "grammar", "")).replace("_", "-"))
    return {
        option: value
        for option, value in (family.options if family else {}).items()
        if value is not None and value is not _REQUIRED and getattr(arguments, option) is None
    }


def options_of(described: Mapping[str, Any]) -> str | None:
    """Return the options which name a model that :meth:`TreeModel.describe` has described.

    None for a grammar that no options name, such as one from a tensor.
    """
    grammar = described["grammar"]
    name = str(grammar.get("family")).replace("_", "-")
    family = _FAMILIES.get(name)
    if family is None:
        return None
    words = ["--grammar", name]
    for option in family.options:
        value = grammar.get(family.names.get(option, option))
        if option != "depth" and value is not None:
            words += ["--" + option.replace("_", "-"), str(value)]
    return " ".join([*words, "--depth", str(described["depth"])])


def grammar_from(arguments: argparse.Namespace) -> Grammar:
    """Return the grammar which the options name.

    Raises
    ------
    ArgumentError
        An option which the family does not have, or one that it needs and did not get.
    DataError
        A name which is neither a family nor a file, or a file that is not a grammar.
    """
    name: str = arguments.grammar
    given = {
        option: getattr(arguments, option)
        for option in _GRAMMAR_OPTIONS
        if getattr(arguments, option) is not None
    }
    family = _FAMILIES.get(name.replace("_", "-"))
    allowed = family.options if family else {}
    for option in given:
        if option not in allowed:
            flag = "--" + option.replace("_", "-")
            raise ArgumentError(f"{flag} has no meaning for --grammar {name}; leave it out")
    if family is None:
        if not Path(name).is_file():
            names = ", ".join(_FAMILIES)
            raise DataError(f"--grammar {name}: neither a family ({names}) nor a file")
        return Grammar.load(Path(name))
    values = {**family.options, **given}
    if "depth" in values:
        values["depth"] = arguments.depth
    for option, value in values.items():
        if value is _REQUIRED:
            raise ArgumentError(f"--grammar {name} needs --{option.replace('_', '-')}")
    return family.make(**{family.names.get(key, key): value for key, value in values.items()})


def model_from(arguments: argparse.Namespace) -> TreeModel:
    """Return the tree model which the options name."""
    return TreeModel(
        grammar_from(arguments), depth=arguments.depth, filter_level=arguments.filter_level
    )
