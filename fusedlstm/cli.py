"""The command line: `fusedlstm COMMAND` (also `python -m fusedlstm`)."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from fusedlstm.bench import Bench
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.commands import train
from fusedlstm.commands.cells import Cells
from fusedlstm.commands.convert import Convert
from fusedlstm.commands.eval import Eval
from fusedlstm.commands.html import Html
from fusedlstm.commands.inspect import Inspect
from fusedlstm.commands.prepare import Prepare
from fusedlstm.commands.repro import Repro
from fusedlstm.commands.sample import Sample
from fusedlstm.commands.serve import Serve

Command = (
    Annotated[train.Train, subcommand("train")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Inspect, subcommand("inspect")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Repro, subcommand("repro")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Cells, subcommand("cells")]
    | Annotated[Html, subcommand("html")]
    | Annotated[Bench, subcommand("bench")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (by default the process's) and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 still shows the rest
    try:
        # Training starts from other settings than its defaults, too.
        command: Any = (
            train.parse(args[1:]) if args[:1] == ["train"] else tyro.cli(Command, args=args, prog="fusedlstm")
        )
        command()
    except CharLMError as error:
        print(f"fusedlstm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough; nothing is left to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
