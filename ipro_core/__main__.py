"""The command line: `ipro`, or `python -m ipro_core`.

Every command says in plain words what it did; with --json its last line is one JSON object. Bad input ends
with exit code 2 and one sentence on stderr.
"""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Sequence

# Before torch is loaded: threads that wait without spinning, or a busy machine makes them ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .commands import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 for bad input, 130 when interrupted.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        outcome = options.command(options)
    except (ValueError, ArithmeticError) as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refuse("The disk is full: free some space, then continue (a run with --resume).")
        where = f" {error.filename}" if error.filename else ""
        return _refuse(f"{error.strerror or error}:{where}. Check that the path exists and may be used.")
    except KeyboardInterrupt:
        print("Interrupted; what was finished is saved, and --resume continues a run.", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(outcome))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipro", description="Identity-preserving reward tuning of video models."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        summary = command.run.__doc__ or ""
        one = commands.add_parser(name, help=summary.splitlines()[0], description=summary)
        command.arguments(one)
        one.add_argument("--json", action="store_true", help="Print one JSON object as the last line.")
        one.set_defaults(command=command.run)
    return parser


def _refuse(sentence: str) -> int:
    print(" ".join(sentence.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
