"""The command that writes a bundle for those who do not have medmtl."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medmtl.cli.app import app, say


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="Folder that `medmtl train` wrote: runs/.../bundle.")],
    out: Annotated[Path, typer.Argument(help="Folder for the exported files; it appears once they are checked.")],
    format: Annotated[Literal["onnx", "torchscript", "torch-export", "monai"], typer.Option(help="Kind of file.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given again.")] = None,
    split: Annotated[bool, typer.Option("--split", help="One file for each task instead of one for all.")] = False,
    image: Annotated[
        list[Path] | None, typer.Option(help="Image or folder of images to compare on, too; may be given again.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="Pixels that the network sees, as 256,256, where the bundle has none.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Export a bundle; it is kept only if the exported file's decoded answers are the bundle's."""
    from medmtl.errors import UserError
    from medmtl.export.parity import TOLERANCE
    from medmtl.export.pipeline import ExportJob
    from medmtl.export.pipeline import export as export_bundle

    parts = [part.strip() for part in size.split(",")] if size else []
    if not all(part.isdecimal() for part in parts):
        raise UserError("E-EXP-SIZE", f"{size!r} are no numbers of pixels", "write for example --size 256,256")
    job = ExportJob(
        bundle=bundle,
        out=out,
        format=format,
        tasks=tuple(task or ()),
        split=split,
        images=tuple(image or ()),
        size=tuple(int(part) for part in parts) or None,
        overwrite=overwrite,
    )
    done = export_bundle(job)
    for name, tasks in done.files.items():
        found = ", ".join(f"{task} {distance:.1g}" for task, distance in tasks.items())
        say(f"{out / name}: largest difference {found} (allowed: {TOLERANCE:g})")
    say(f"compared on the bundle's example input, drawn inputs and {done.images} given images")
