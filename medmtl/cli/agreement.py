"""The command that says how far annotators agree."""

from pathlib import Path
from typing import Annotated

import typer

from medmtl.cli.app import app, say
from medmtl.errors import OK, PARTIAL


@app.command()
def agreement(
    manifest: Annotated[Path, typer.Argument(help="A manifest with columns target.<task>.<annotator>.")],
    out: Annotated[Path, typer.Option(help="Folder for agreement.csv, by.csv, problems.csv and report.html.")],
    task: Annotated[str, typer.Option(help="The task whose masks are compared; default: the only one.")] = "",
    pairs: Annotated[
        Path | None, typer.Option(help="Published pairs (CSV: image, a, b, dice, ...), beside the masks or alone.")
    ] = None,
    measures: Annotated[str, typer.Option(help="Of dice, jaccard, nsd, hd95, assd; the first ranks.")] = "dice",
    by: Annotated[
        list[str] | None, typer.Option(help="Also by this trait of the masks, or by domain or a meta column.")
    ] = None,
    label: Annotated[
        int | None, typer.Option(min=1, help="The class to compare, where masks have more than two values.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Of nsd: mm where an image has a spacing, else px.")] = 2.0,
    pictures: Annotated[int, typer.Option(min=0, help="How many pictures show every outline.")] = 6,
) -> int:
    """Measure how far annotators agree: per image, by annotator and trait, with outlines where they differ most."""
    from medmtl.evaluation.annotators_report import AgreementJob, measure_agreement

    names = tuple(name.strip() for name in measures.split(","))
    job = AgreementJob(manifest, out, task, pairs, names, tuple(by or ()), label, tolerance, pictures)
    done = measure_agreement(job)
    whole = done.by[(done.by["by"] == "all") & (done.by["measure"] == names[0])].iloc[0]
    say(f"{names[0]} {whole['value']:.3f} over {whole['pairs']} pairs of {whole['images']} images")
    if len(done.problems):
        say(f"{len(done.problems)} rows in {out / 'problems.csv'}, {done.failed} of images that cannot be compared")
    say(f"report: {done.report}")
    return PARTIAL if done.failed else OK
