"""AnnoCerv, or a folder of your own colposcopy images -> ``manifest.csv``.

    python -m workflows.cervical_screening.prepare SOURCE OUT [--layout auto] [--max-side 1024] [--also green]

``SOURCE`` has one of the layouts that ``sources.py`` describes. ``OUT`` gets ``manifest.csv``, ``images/`` (hard links,
or copies: do not edit them in place; smaller PNGs where an image exceeds ``--max-side``), ``masks/`` and
``prepare_report.csv``, which accounts for every row of the source. Run again it changes
nothing; interrupted it goes on.

**The same image under two names** (AnnoCerv files four patients twice, partly with different scores) becomes one case:
labels on which the rows differ are emptied, and their patients share the column ``group``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track

from medmtl.data.case import Case
from medmtl.errors import UserError
from workflows.cervical_screening.labels import ACETOWHITE
from workflows.cervical_screening.outlines import fill, read_overlay
from workflows.cervical_screening.quality import measures
from workflows.cervical_screening.sources import Layout, Picture, Source, open_source
from workflows.preparation import (
    USED,
    Groups,
    LeftOut,
    Place,
    Placed,
    Remark,
    Report,
    command,
    place_image,
    place_mask,
    read_binary,
    remarked,
)

_ALWAYS = ("", "acetic")  # the filters that are taken without being asked for


@dataclass(frozen=True)
class _Ready:
    """A picture whose image is in place, with its masks drawn."""

    picture: Picture
    image: Placed
    masks: dict[str, np.ndarray]  # target -> bool [H, W] of the placed image


def prepare(
    source: Path,
    out: Path,
    *,
    layout: Layout = Layout.AUTO,
    max_side: int = 1024,
    also: Sequence[str] = (),
    console: Console | None = None,
) -> Report:
    """Write ``out/manifest.csv`` and what it needs; see the module's docstring.

    Images through other filters than acetic acid are left out unless ``also`` names them. Raises UserError where the
    source is not understood, NothingUsable where no row is usable.
    """
    data, report = open_source(source, layout), Report()
    console = console or Console(quiet=True)
    if data.unread:
        console.print(f"columns that nothing reads: {', '.join(data.unread)}", markup=False, soft_wrap=True)
    ready: dict[str, _Ready] = {}
    for place, row in track(data.rows, description="Reading images", console=console):
        try:
            if place.case_id.casefold() in ready:
                raise UserError("E-PREP-TWICE", "the same image is in an earlier row", "remove one of the rows")
            ready[place.case_id.casefold()] = _read(data, place, row, out, max_side=max_side, also=also)
        except (UserError, LeftOut) as problem:
            report.refuse(place, problem)
    cases = _cases(list(ready.values()), out, report)
    report.settle(cases, out, data.name)
    return report


def _cases(ready: Sequence[_Ready], out: Path, report: Report) -> list[Case]:
    """One case per image, and patients who share an image in one group."""
    groups, cases = Groups(), []
    for alike in _alike(ready):
        kept = _merged(alike)
        for other in alike:
            groups.join(kept.picture.patient, other.picture.patient)
            if other.picture.place != kept.picture.place:
                report.refuse(other.picture.place, LeftOut(f"the same image as {kept.picture.place.case_id}"))
        try:
            cases.append(_case(kept, out))
            report.add(kept.picture.place, USED, *remarked(kept.picture.remarks))
        except LeftOut as problem:
            report.refuse(kept.picture.place, problem)
    return [replace(case, group=groups.name(case.group)) for case in cases]


def _read(data: Source, place: Place, row: dict[str, str], out: Path, *, max_side: int, also: Sequence[str]) -> _Ready:
    picture = data.read(place, row)
    kind = picture.meta.get("filter", "")
    if kind not in (*_ALWAYS, *also):
        raise LeftOut(f"{kind} image", f"take it with --also {kind}")
    image = place_image(picture.image, out / "images", place.case_id, max_side=max_side)
    targets, remarks = dict(picture.targets), list(picture.remarks)
    try:
        masks, status = _drawn(picture, image)
    except UserError as error:  # the image keeps its other labels
        masks, status = {}, "refused"
        remarks.append(Remark(f"no mask: {error.what} ({error.code})", error.remedy))
    if picture.overlay and status and status != "refused":
        targets["acetowhite"] = ACETOWHITE[status != "empty"]
        if "lesion" not in masks:
            remarks.append(Remark(f"no lesion mask: the curves are {status}", "close the curves"))
    meta = dict(picture.meta) | ({"mask_status": status} if status else {}) | measures(image.path)
    return _consistent(_Ready(replace(picture, targets=targets, meta=meta, remarks=tuple(remarks)), image, masks))


def _consistent(one: _Ready) -> _Ready:
    """The picture without a lesion mask that says the contrary of its acetowhite flag."""
    if "lesion" not in one.masks or not (flag := one.picture.targets.get("acetowhite")):
        return one
    drawn = bool(one.masks["lesion"].any())
    if flag == ACETOWHITE[drawn]:
        return one
    what = "a lesion is drawn" if drawn else "the lesion mask is empty"
    remark = Remark(f"{what}, yet acetowhite is {flag}: no mask", "correct one of the two")
    masks = {name: mask for name, mask in one.masks.items() if name != "lesion"}
    return replace(one, picture=replace(one.picture, remarks=(*one.picture.remarks, remark)), masks=masks)


def _drawn(picture: Picture, image: Placed) -> tuple[dict[str, np.ndarray], str]:
    """The masks of a picture and how its lesion was found; nothing and "" where it has neither mask nor overlay."""
    if picture.mask is not None:
        mask, remark = read_binary(picture.mask, image.native)
        status = "soft edges cut" if remark else picture.meta.get("mask_status", "") or "given"
        return {"lesion": mask}, status
    if picture.overlay is None:
        return {}, ""
    curves = read_overlay(picture.overlay)
    if (found := next(iter(curves.values())).shape) != image.native:
        raise UserError(
            "E-PREP-SIZE",
            f"overlay of {found[1]} x {found[0]} px for an image of {image.native[1]} x {image.native[0]} px",
            "export the overlay at the size of its image",
        )
    small = {name: _reduced(curve, image.shape) for name, curve in curves.items()}
    lesion = fill(small["acetowhite"])
    masks = {} if lesion.mask is None else {"lesion": lesion.mask}
    return masks | {f"curve_{name}": curve for name, curve in small.items()}, lesion.status


def _reduced(curve: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A curve on a smaller grid, where a pixel is drawn if any part of it was: a thin line stays whole."""
    if curve.shape == shape:
        return curve
    full = Image.fromarray(curve.astype(np.float32))
    return np.asarray(full.resize(shape[::-1], Image.Resampling.BOX)) > 1e-6


def _alike(ready: Sequence[_Ready]) -> list[list[_Ready]]:
    """The pictures by the bytes of their image, in the order of their rows."""
    found: dict[str, list[_Ready]] = {}
    for one in ready:
        found.setdefault(one.image.digest, []).append(one)
    return list(found.values())


def _merged(alike: Sequence[_Ready]) -> _Ready:
    """One case of an image that several rows file: the first with a lesion mask, with the labels all of them share."""
    kept = next((one for one in alike if "lesion" in one.masks), alike[0])
    remarks, targets = list(kept.picture.remarks), dict(kept.picture.targets)
    for name in dict.fromkeys(name for one in alike for name in one.picture.targets):
        given = {cell for one in alike if (cell := one.picture.targets.get(name))}
        if len(given) > 1:
            targets[name] = ""
            remarks.append(Remark(f"no {name}: the same image is filed with {', '.join(sorted(given))}"))
        elif given:
            targets[name] = given.pop()
    return _consistent(replace(kept, picture=replace(kept.picture, targets=targets, remarks=tuple(remarks))))


def _case(kept: _Ready, out: Path) -> Case:
    picture = kept.picture
    cells = {name: cell for name, cell in picture.targets.items() if cell}
    if not cells and not kept.masks:
        raise LeftOut("no label at all", "give a score, a histology, an acetowhite flag or a mask")
    for name, mask in kept.masks.items():
        path = place_mask(mask, out / "masks" / name / f"{picture.place.case_id}.png", kept.image.shape)
        cells[name] = path.relative_to(out).as_posix()
    meta = {name: cell for name, cell in picture.meta.items() if cell}
    image = kept.image.path.relative_to(out).as_posix()
    return Case(picture.place.case_id, picture.patient, image, picture.domain, picture.split, cells, meta)


def main(
    source: Annotated[Path, typer.Argument(help="Folder of AnnoCerv, or of images with a CSV.")],
    out: Annotated[Path, typer.Argument(help="Folder to write manifest.csv, images and masks to.")],
    layout: Annotated[Layout, typer.Option(help="How SOURCE is laid out.")] = Layout.AUTO,
    max_side: Annotated[
        int, typer.Option(min=64, help="Images with a longer side are written smaller, as PNG.")
    ] = 1024,
    also: Annotated[list[str] | None, typer.Option(help="Further filters to take: green, iodine.")] = None,
) -> None:
    """Turn colposcopy images into a manifest."""

    def run(console: Console) -> Iterable[str]:
        return prepare(source, out, layout=layout, max_side=max_side, also=also or (), console=console).summary()

    command(run, out)


if __name__ == "__main__":
    typer.run(main)
