"""The command about the machine: doctor."""

import json
from typing import Annotated

import typer

from medmtl.cli.app import app, say


@app.command()
def doctor(
    uri: Annotated[str | None, typer.Option(help="MLflow store; default: as in training.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> int:
    """Look at this machine: versions, codecs, GPU, memory, disk, locks, MLflow. Exit code 5 if something fails."""
    from medmtl.doctor import as_text, as_tree, examine, exit_code

    lines = examine(uri=uri)
    for text in (json.dumps(as_tree(lines)),) if as_json else as_text(lines):
        say(text)
    return exit_code(lines)
