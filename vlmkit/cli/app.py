"""The wiring of the commands, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import vlmkit
from vlmkit.cli import ask, bench, evaluate, export, frontier, models, pretrain_superclass, study, sweep, train_vlm
from vlmkit.cli.output import print_error
from vlmkit.errors import Interrupted, UserError

app = typer.Typer(
    name="vlmkit",
    help="Pretrain vision backbones, build VLMs with few visual tokens, choose what to deploy at a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("pretrain-superclass")(pretrain_superclass.pretrain_superclass)
app.command("train-vlm")(train_vlm.train_vlm)
app.command("eval")(evaluate.evaluate)
app.command("ask")(ask.ask)
app.command("bench")(bench.bench)
app.command("frontier")(frontier.frontier)
app.command("sweep")(sweep.sweep)
app.command("study")(study.study)
app.command("export")(export.export)
app.command("models")(models.models)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"vlmkit {vlmkit.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 128 + signal when a signal stopped a run."""
    try:
        app()
    except UserError as error:
        print_error(str(error))
        sys.exit(2)
    except Interrupted as stop:
        print_error(str(stop))
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print_error("Interrupted.")
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) left: not an error, but the interpreter would complain while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
