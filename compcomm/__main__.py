"""``python -m compcomm plan ...`` and ``python -m compcomm report ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "plan": "which method to use, predicted from the model, the workers and the link",
    "report": "what runs and benchmarks have written, as tables and plots",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; each is the module ``compcomm.<name>.command``, imported when it is asked for."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="compcomm", description="Gradient averaging with fewer bytes.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        own = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if given[:1] == [name]:
            import_module(f"compcomm.{name}.command").arguments(own)
    options = parser.parse_args(given)
    return import_module(f"compcomm.{options.command}.command").main(options)


if __name__ == "__main__":
    sys.exit(main())
