"""IMA++ tables, ISIC images with masks, PAD-UFES-20 with annotators' masks, or your own -> one ``manifest.csv``.

    python -m workflows.skin_lesions.prepare SOURCE... OUT [--max-side 1024]

Each ``SOURCE`` is a data set of ``sources.py``, or a folder that holds several. A picture that two of them hold under
one id is one case, with every annotator's mask (``joining.py``); two pictures under one id are an error.

``OUT`` gets ``manifest.csv``, ``images/`` (hard links, or copies: do not edit them in place; smaller PNGs above
``--max-side``), ``masks/<annotator>/``, ``masks/consensus/``, ``pairs.csv`` where pairs of annotators are published
(for ``medmtl agreement --pairs``), and ``prepare_report.csv``, which accounts for every source row. Run again it
changes nothing; interrupted it goes on.

``target.agreement`` is the mean Dice over the pairs of *different* annotators, ``meta.annotator_pairs`` their number: a
pair of an annotator with himself, or with a consensus, does not count. ``target.lesion.<annotator>`` are the masks,
``target.lesion_consensus`` is what more than half of an image's annotators marked: of two, what both did.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from medmtl.agreement.consensus import majority
from medmtl.data.case import Case
from medmtl.errors import UserError
from workflows.preparation import (
    USED,
    Groups,
    LeftOut,
    Remark,
    Report,
    Row,
    command,
    file_inside,
    file_name,
    place_image,
    place_mask,
    read_binary,
    remarked,
)
from workflows.skin_lesions.agreement import Agreement, Check, of_pairs, usable, verify, write_pairs
from workflows.skin_lesions.joining import Drawing, Lesion, by_picture, joined
from workflows.skin_lesions.sources import DataSet, Layout, MaskRow, Pair, Shot, data_sets, no_image, open_data_set


def prepare(
    sources: Sequence[Path], out: Path, *, max_side: int = 1024, console: Console | None = None
) -> tuple[Report, list[Check]]:
    """Write ``out/manifest.csv`` and what it needs; returns the report and the checks of the agreement code.

    Raises UserError where a source is not understood, NothingUsable where no row is usable.
    """
    report, lesions, checks = Report(), list[Lesion](), list[Check]()
    console = console or Console(quiet=True)
    for folder, layout in data_sets(list(sources)):
        if layout is Layout.DERMXDB:
            checks.append(verify(folder, out / "agreement_check.csv", report))
        else:
            lesions += _lesions(open_data_set(folder, layout), out, report, max_side=max_side, console=console)
    pictures = by_picture(lesions, report)
    groups, cases = _groups([lesion for same in pictures for lesion in same]), []
    pairs: dict[str, list[Pair]] = {}
    for same in pictures:
        kept = joined(same, report)
        rows = [(kept.shot.place, kept.shot.remarks), *kept.others]
        try:
            cases.append(_case(kept, groups, out))
            pairs |= {kept.name: kept.pairs} if kept.pairs else {}
            for place, remarks in rows:
                report.add(place, USED, *remarked(remarks))
        except LeftOut as problem:
            for place, _ in rows:
                report.refuse(place, problem)
    if pairs:
        write_pairs(out / "pairs.csv", pairs)
    report.settle(cases, out)
    return report, checks


def _lesions(data: DataSet, out: Path, report: Report, *, max_side: int, console: Console) -> list[Lesion]:
    """The images of one data set with their masks; rows that cannot be used go to the report."""
    found: dict[str, Lesion] = {}
    for place, row in track(data.images, description=f"Reading {data.name}", console=console):
        try:
            if file_name(place.case_id).casefold() in {file_name(name).casefold() for name in found}:
                raise UserError("E-PREP-TWICE", "the same image is in an earlier row", "remove one of the rows")
            shot = data.read(place, row)
            image = place_image(
                shot.image, out / "images" / file_name(data.name), file_name(place.case_id), max_side=max_side
            )
            found[place.case_id] = Lesion(shot, image, data.layout)
        except UserError as error:
            report.refuse(place, error)
    pairs, drawn = usable(data.pairs, found, report), _drawn(data, found, report)
    for name, lesion in found.items():
        published = Agreement(*lesion.shot.agreement) if lesion.shot.agreement else None
        lesion.pairs, lesion.shot = pairs.get(name, []), _annotated(lesion.shot, drawn)
        lesion.agreement = of_pairs(lesion.pairs) or published
    for drawing in data.masks:
        _add_mask(drawing, data, found, report)
    return list(found.values())


def _drawn(data: DataSet, images: Container[str], report: Report) -> dict[str, list[Row]]:
    """The rows of ``annotations.csv`` by image."""
    found: dict[str, list[Row]] = {}
    for place, row in data.annotations:
        if place.case_id in images:
            found.setdefault(place.case_id, []).append(row)
            report.add(place, USED)
        else:
            report.refuse(place, no_image(place.case_id))
    return found


def _annotated(shot: Shot, drawn: Mapping[str, list[Row]]) -> Shot:
    """The shot with the tool and the skill of those who drew it: one value, or ``mixed``."""
    rows = drawn.get(shot.place.case_id, [])
    meta = {name: {row[column] for row in rows} for name, column in (("tool", "tool"), ("skill", "skill_level"))}
    cells = {name: min(values) if len(values) == 1 else "mixed" for name, values in meta.items() if values}
    return replace(shot, meta=dict(shot.meta) | cells)


def _add_mask(row: MaskRow, data: DataSet, found: dict[str, Lesion], report: Report) -> None:
    """Read one mask into its image. The row of an image that holds its own mask is reported with the image."""
    lesion = found.get(row.image_id)
    try:
        if lesion is None:
            raise no_image(row.image_id)
        if row.annotator in lesion.drawings:
            raise LeftOut(
                "a second mask by the same annotator",
                "keep one; under an annotator id of its own it would count as another person",
            )
        pixels, remark = read_binary(file_inside(data.root, row.path, "mask"), lesion.image.native)
    except (UserError, LeftOut) as problem:
        if not row.own:
            report.refuse(row.place, problem)
        elif lesion is not None and isinstance(problem, UserError):
            lesion.remark(Remark(f"no mask: {problem.what} ({problem.code})", problem.remedy))
        return
    lesion.drawings[row.annotator] = Drawing(row, pixels, remark)
    if row.own and remark:
        lesion.remark(remark)


def _groups(lesions: Sequence[Lesion]) -> Groups:
    """Images of one patient, of one lesion, of one id or of equal bytes are one group."""
    groups, seen = Groups(), dict[str, str]()
    for lesion in lesions:
        for key in (*lesion.shot.relatives, lesion.image.digest):
            groups.join(seen.setdefault(key, lesion.name), lesion.name)
    return groups


def _case(lesion: Lesion, groups: Groups, out: Path) -> Case:
    shot, name = lesion.shot, lesion.name
    if not (shot.diagnosis or lesion.agreement or lesion.masks):
        raise LeftOut("no label at all", "give a diagnosis, an agreement or a mask")
    targets = {"diagnosis": shot.diagnosis} if shot.diagnosis else {}
    meta = {key: cell for key, cell in shot.meta.items() if cell}
    if lesion.agreement:
        targets["agreement"] = f"{lesion.agreement.mean:.6f}"
        meta["annotator_pairs"] = str(lesion.agreement.pairs)
    for annotator, mask in lesion.masks.items():
        path = place_mask(mask, out / "masks" / annotator / f"{name}.png", lesion.image.shape)
        targets[f"lesion.{annotator}"] = path.relative_to(out).as_posix()
    if lesion.masks:
        meta["mask_annotators"] = str(len(lesion.masks))
    if (shared := _consensus(lesion)) is not None:
        path = place_mask(shared, out / "masks" / "consensus" / f"{name}.png", lesion.image.shape)
        targets["lesion_consensus"] = path.relative_to(out).as_posix()
    image = lesion.image.path.relative_to(out).as_posix()
    return Case(name, groups.name(name), image, shot.domain, shot.split, targets, meta)


def _consensus(lesion: Lesion) -> np.ndarray | None:
    """What more than half of the annotators marked; None where they marked something and it is nowhere the same."""
    if not lesion.masks:
        return None
    masks = np.stack(list(lesion.masks.values()))
    shared = majority(masks).astype(bool)
    return shared if shared.any() or not masks.any() else None


def main(
    sources: Annotated[list[Path], typer.Argument(help="Folders of data sets, or of several of them.")],
    out: Annotated[Path, typer.Argument(help="Folder to write manifest.csv, images and masks to.")],
    max_side: Annotated[
        int, typer.Option(min=64, help="Images with a longer side are written smaller, as PNG.")
    ] = 1024,
) -> None:
    """Turn images of skin lesions with diagnoses, agreements and masks into a manifest."""

    def run(console: Console) -> Iterable[str]:
        report, checks = prepare(sources, out, max_side=max_side, console=console)
        return *report.summary(), *map(str, checks)

    command(run, out)


if __name__ == "__main__":
    typer.run(main)
