"""AMi-Br or the MIDOG 2025 atypical training set -> ``manifest.csv``.

    python -m workflows.atypical_mitosis.prepare SOURCE OUT [--layout auto] [--masks haematoxylin]

``SOURCE`` has one of the layouts that ``sources.py`` describes: AMi-Br as cloned or with an index, or MIDOG25.

**Leak.** MIDOG25 "human breast cancer" (1,721 figures) *is* the MIDOG21 part of AMi-Br. Never train on one and test on
the other. Its slides get the same ``group`` here (``MIDOG21_002``), so a split by group over both manifests is safe.

``OUT`` gets ``manifest.csv``, ``images/`` (hard links to the patches, or copies: do not edit them in place), ``masks/``
and ``prepare_report.csv``, which accounts for every row of the source. Run again it changes nothing; interrupted it
goes on.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from medmtl.data.case import Case
from medmtl.errors import UserError
from workflows.atypical_mitosis.nucleus import Haematoxylin, MaskProvider, UserMasks, cached_mask
from workflows.atypical_mitosis.sources import Figure, Layout, Source, open_source
from workflows.preparation import LEFT_OUT, USED, LeftOut, Place, Remark, Report, command, place_image

LEAK = (
    'MIDOG25 "human breast cancer" holds the same figures as the MIDOG21 part of AMi-Br: '
    "never train on one and test on the other (their slides share the column group)"
)
NO_MASK = "no nucleus mask: "


def prepare(
    source: Path,
    out: Path,
    *,
    layout: Layout = Layout.AUTO,
    masks: MaskProvider | None = None,
    min_figures: int = 1,
    console: Console | None = None,
) -> Report:
    """Write ``out/manifest.csv`` and what it needs; see the module's docstring.

    Slides with fewer usable figures than ``min_figures`` are left out. Raises UserError where the source is not
    understood, NothingUsable where no row is usable.
    """
    data, report, cases = open_source(source, layout), Report(), []
    console = console or Console(quiet=True)
    placed = []
    for place, figure in track(list(_figures(data, report)), description="Reading patches", console=console):
        try:
            placed.append((place, figure, place_image(figure.patch.resolve(), out / "images", figure.case_id).path))
        except UserError as error:
            report.refuse(place, error)
    slides = Counter(figure.group for _, figure, _ in placed)
    for place, figure, image in track(placed, description="Writing cases", console=console):
        if slides[figure.group] < min_figures:
            report.add(place, LEFT_OUT, f"its slide has fewer than {min_figures} usable figures")
            continue
        mask, why = cached_mask(masks, out / "masks", figure.case_id, image) if masks else (None, Remark("no provider"))
        report.add(place, USED, "" if mask else f"{NO_MASK}{why.what}", why.remedy)
        cases.append(_case(figure, image, mask, masks, out))
    report.settle(cases, out, data.name)
    return report


def _figures(data: Source, report: Report) -> Iterator[tuple[Place, Figure]]:
    """The rows that can be understood; the others go to the report."""
    seen: set[str] = set()
    for number, row in data.rows:
        name = row.get("patch_id") or row.get("image_id") or f"{row.get('dataset')}_{row.get('uid')}"
        try:
            figure = data.read(row)
            _check(figure, seen)
        except (LeftOut, UserError) as problem:
            report.refuse(Place(data.name, number, name), problem)
        except KeyError as error:
            raise UserError("E-PREP-COLUMN", f"no column {error}", "restore the table", where=data.name) from error
        else:
            seen.add(figure.case_id.casefold())
            yield Place(data.name, number, figure.case_id), figure


def _check(figure: Figure, seen: set[str]) -> None:
    if figure.case_id.casefold() in seen:
        raise LeftOut("the same patch is in an earlier row")
    if not figure.label:
        raise LeftOut("no majority label")
    given = [vote for vote in figure.votes if vote]
    majority = {"normal": len(given) - given.count("atypical"), "atypical": given.count("atypical")}
    if given and majority[figure.label] * 2 < len(given):
        raise LeftOut(f"the label {figure.label!r} contradicts the experts' votes")


def _case(figure: Figure, image: Path, mask: Path | None, provider: MaskProvider | None, out: Path) -> Case:
    given = {vote for vote in figure.votes if vote}
    targets, meta = figure.targets(), dict(figure.meta) | {"unanimous": "1" if len(given) == 1 else "0"}
    if mask is not None and provider is not None:
        targets["nucleus"] = mask.relative_to(out).as_posix()
        meta["nucleus_provider"] = f"{provider.name}-{provider.digest}"
    relative = image.relative_to(out).as_posix()
    return Case(figure.case_id, figure.group, relative, figure.domain, figure.split, targets, meta)


def _provider(masks: str, um_per_px: float) -> MaskProvider | None:
    if masks == "none":
        return None
    if masks == Haematoxylin.name:
        return Haematoxylin(um_per_px=um_per_px)
    if not Path(masks).is_dir():
        raise UserError("E-PREP-MASKS", f"no such folder: {masks}", "give a folder, 'haematoxylin' or 'none'")
    return UserMasks(Path(masks))


def main(
    source: Annotated[Path, typer.Argument(help="Folder of AMi-Br or of the MIDOG 2025 atypical training set.")],
    out: Annotated[Path, typer.Argument(help="Folder to write manifest.csv, images and masks to.")],
    layout: Annotated[Layout, typer.Option(help="How SOURCE is laid out.")] = Layout.AUTO,
    masks: Annotated[str, typer.Option(help="'haematoxylin', 'none', or a folder of <case_id>.png.")] = "haematoxylin",
    um_per_px: Annotated[float, typer.Option(help="Pixel size of the patches, for 'haematoxylin'.")] = 0.25,
    min_figures: Annotated[int, typer.Option(min=1, help="Leave out slides with fewer usable figures.")] = 1,
) -> None:
    """Turn AMi-Br or the MIDOG 2025 atypical training set into a manifest."""

    def run(console: Console) -> Iterable[str]:
        provider = _provider(masks, um_per_px)
        report = prepare(source, out, layout=layout, masks=provider, min_figures=min_figures, console=console)
        drawn = sum(not line[4] for line in report.lines if line[3] == USED)
        return *report.summary(), f"{drawn} nucleus masks", f"WARNING: {LEAK}."

    command(run, out)


if __name__ == "__main__":
    typer.run(main)
