"""The command line itself: errors as one line and an exit code, what is said, and the version."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from medmtl import __version__
from medmtl.errors import ENVIRONMENT, INTERRUPTED, OK, TrainingInterrupted, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Multi-task learning for medical images from several sites, with gaps in the label table.",
)


def main() -> None:
    """Entry point: a user's mistake is one line and an exit code, never a bare traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code (0, 2 to 6, 130, 143: see README)."""
    try:
        result = app(arguments, standalone_mode=False)
    except UserError as error:
        _report(str(error))
        return error.exit_code
    except TrainingInterrupted as error:
        _report(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _report("interrupted")
        return INTERRUPTED
    except MemoryError:
        _report(f"E-MEMORY the memory is used up — {_lighter(arguments)}")
        return ENVIRONMENT
    except Exception as error:
        return _unexpected(error)
    return result if isinstance(result, int) else OK


def _lighter(arguments: list[str]) -> str:
    """How the command would take less memory: what it is told by options, or training by its recipe."""
    if arguments[:1] == ["predict"]:
        return "lower --batch-size or --max-ram"
    return "lower loader.batch_size, or set loader.cache: none"


def _unexpected(error: Exception) -> int:
    """Click's usage errors, memory of a device, and defects of ours (the traceback goes to a file)."""
    code = getattr(error, "exit_code", None)
    if code is not None and hasattr(error, "show"):
        error.show()
        return int(code)
    if type(error).__name__ == "OutOfMemoryError":
        _report("E-MEMORY the device's memory is used up — lower loader.batch_size or preprocess.window")
        return ENVIRONMENT
    if os.environ.get("MEDMTL_TRACEBACK"):
        raise error
    path = Path("medmtl-error.log")
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    _report(f"E-BUG {type(error).__name__} — this is a defect of medmtl; the traceback is in {path}")
    return 1


def _report(message: str) -> None:
    typer.secho(message, fg=typer.colors.RED, err=True)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def say(message: str) -> None:
    """Print on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(message)
