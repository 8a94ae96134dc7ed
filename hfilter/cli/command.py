"""Parse, run one sub-command, and turn every foreseeable failure into one line and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

from hfilter import __version__
from hfilter.cli import config, demo, evaluate, figure, generate, infer, info, train
from hfilter.cli.options import Formatter
from hfilter.errors import HFilterError

__all__ = ["build_parser", "main"]

COMMANDS = (demo, train, evaluate, figure, generate, infer, info)

EPILOG = """\
examples:
  hfilter demo                                   the main job, with figures and a page to read
  hfilter train --preset mlm-fast --out run      an encoder beside the exact answer
  hfilter evaluate run                           it, on data of every filter level
  hfilter figure staircase                       one experiment with its figure
  hfilter generate --rows 1e6 --out rows.npy     a million sequences of the published grammar
  hfilter infer rows.npy --what root --out posterior.npy
  hfilter COMMAND --help                         options and examples of each command
exit codes: 0 done, 2 bad input or a missing package, 130 interrupted
"""


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the whole parser and the parser of each sub-command by name."""
    parser = argparse.ArgumentParser(
        prog="hfilter",
        description="Hierarchical grammars with a filter, and their exact posteriors.",
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=f"hfilter {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands: dict[str, argparse.ArgumentParser] = {}
    for module in COMMANDS:
        command: argparse.ArgumentParser = module.add(subparsers)
        config.add_common(command)
        commands[command.prog.split()[-1]] = command
    return parser, commands


def _terminate(signum: int, frame: FrameType | None) -> None:
    # An exception, so that half-written files are removed on the way out, as for Ctrl-C.
    raise SystemExit(128 + signum)


def _run(argv: Sequence[str]) -> int:
    parser, commands = build_parser()
    arguments = config.parse(parser, commands, argv)
    if arguments.print_config:
        print(config.dump(commands[arguments.command], arguments))
        return 0
    try:
        return int(arguments.run(arguments))
    except (HFilterError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        if arguments.traceback:
            traceback.print_exc()
        text = " ".join(str(error).split()) or "not enough memory"
        print(f"hfilter {arguments.command}: error: {text}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # A package of an extra, not a fault of ours: our own modules are never missing.
        if arguments.traceback or (error.name or "").startswith("hfilter"):
            raise
        print(
            f"hfilter {arguments.command}: error: this command needs the package {error.name}, "
            "which is not installed; in the folder of hfilter: pip install '.[learn]'",
            file=sys.stderr,
        )
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; ``sys.argv[1:]`` if not given.

    Returns
    -------
    int
        0 done; 2 bad input or a missing package (one line on standard error, a traceback only with
        ``--traceback``); 130 after Ctrl-C; 143 after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± is no reason to stop
    previous: Any = None
    handles = threading.current_thread() is threading.main_thread()
    if handles:
        previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 2
    except KeyboardInterrupt:
        print(
            "hfilter: interrupted; no half-written file is left, and a demo, a training or a figure "
            "called again goes on from its last checkpoint",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # `hfilter info | head`: the reader has left. Keep Python's own exit flush silent too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if handles:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
