"""The command that draws what answers depend on."""

from pathlib import Path
from typing import Annotated

import typer

from medmtl.cli.app import app, say


@app.command()
def explain(
    bundle: Annotated[Path, typer.Argument(help="Folder that `medmtl train` wrote: runs/.../bundle.")],
    sources: Annotated[list[Path], typer.Argument(help="Manifests (.csv) and images, as those of the study.")],
    out: Annotated[Path, typer.Argument(help="Folder for maps, pictures and explained.csv.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given again.")] = None,
    occlusion: Annotated[
        int, typer.Option(min=0, help="Also cover boxes, this many to an axis: one forward for each. 0: none.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first cases of each manifest.")] = None,
    device: str = "auto",
) -> int:
    """Draw which pixels or voxels an answer depends on, and what each slice counts; no evidence that it is right."""
    import pandas as pd

    from medmtl.evaluation.plots import save
    from medmtl.evaluation.plots.slices import slice_weights
    from medmtl.inference.explain import ExplainJob
    from medmtl.inference.explain import explain as explain_cases

    job = ExplainJob(bundle, tuple(sources), out, tuple(task or ()), occlusion, limit, device)

    def draw(table: Path) -> list[Path]:
        name = table.name.removesuffix(".csv")
        return save(slice_weights(pd.read_csv(table), title=f"{table.parent.name}: {name}"), table.parent, name)

    done = explain_cases(job, tick=lambda done, total: say(f"{done} of {total}"), draw=draw)
    say(f"{done.cases - done.failed} of {done.cases} cases explained: {done.table}")
    return done.exit_code
