"""IMA++ tables, ISIC images with masks, PAD-UFES-20 with annotators' masks, or your own -> one ``manifest.csv``.

    python -m workflows.skin_lesions.prepare SOURCE... OUT [--max-side 1024]

Each ``SOURCE`` is a data set of ``sources.py``, or a folder that holds several. An image that two of them name is one
case: with the image that has masks, and what the other knows beside it. ``OUT`` gets ``manifest.csv``, ``images/``
(hard links, or copies: do not edit them in place; smaller PNGs above ``--max-side``), ``masks/<annotator>/``,
``masks/consensus/`` and ``prepare_report.csv``, which accounts for every source row. Run again it changes nothing;
interrupted it goes on.

``target.agreement`` is the mean Dice over the pairs of *different* annotators, ``meta.annotator_pairs`` their number: a
pair of an annotator with himself, or with a consensus, does not count. ``target.lesion.<annotator>`` are the masks,
``target.lesion_consensus`` is what more than half of an image's annotators marked: of two, what both did.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    Placed,
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
from workflows.skin_lesions.agreement import Agreement, Check, of_masks, of_pairs, verify
from workflows.skin_lesions.sources import DataSet, Layout, MaskRow, Shot, data_sets, open_data_set


@dataclass
class _Lesion:
    """An image in place with everything that one data set knows of it."""

    shot: Shot
    image: Placed
    agreement: Agreement | None
    masks: dict[str, np.ndarray] = field(default_factory=dict)  # annotator -> bool [H, W] of the source image


def prepare(
    sources: Sequence[Path], out: Path, *, max_side: int = 1024, console: Console | None = None
) -> tuple[Report, list[Check]]:
    """Write ``out/manifest.csv`` and what it needs; returns the report and the checks of the agreement code.

    Raises UserError where a source is not understood, NothingUsable where no row is usable.
    """
    report, lesions, checks = Report(), list[_Lesion](), list[Check]()
    console = console or Console(quiet=True)
    for folder, layout in data_sets(list(sources)):
        if layout is Layout.DERMXDB:
            checks.append(verify(folder, out / "agreement_check.csv", report))
        else:
            lesions += _lesions(open_data_set(folder, layout), out, report, max_side=max_side, console=console)
    groups, cases = _groups(lesions), []
    by_name: dict[str, list[_Lesion]] = {}
    for lesion in lesions:
        by_name.setdefault(file_name(lesion.shot.place.case_id).casefold(), []).append(lesion)
    for same in by_name.values():
        kept = _joined(same)
        try:
            cases.append(_case(kept, groups, out))
            report.add(kept.shot.place, USED, *remarked(kept.shot.remarks))
        except LeftOut as problem:
            report.refuse(kept.shot.place, problem)
        for other in same:
            if other.shot.place != kept.shot.place:
                report.add(other.shot.place, USED, f"joined with the image of {kept.shot.place.table}")
    report.settle(cases, out)
    return report, checks


def _lesions(data: DataSet, out: Path, report: Report, *, max_side: int, console: Console) -> list[_Lesion]:
    """The images of one data set with their masks; rows that cannot be used go to the report."""
    ids = {place.case_id for place, _ in data.images}
    known, drawn = of_pairs(data.pairs, ids, report), _drawn(data, ids, report)
    found: dict[str, _Lesion] = {}
    for place, row in track(data.images, description=f"Reading {data.name}", console=console):
        try:
            if file_name(place.case_id).casefold() in {file_name(name).casefold() for name in found}:
                raise UserError("E-PREP-TWICE", "the same image is in an earlier row", "remove one of the rows")
            shot = data.read(place, row)
            image = place_image(
                shot.image, out / "images" / file_name(data.name), file_name(place.case_id), max_side=max_side
            )
            agreement = known.get(place.case_id) or (Agreement(*shot.agreement) if shot.agreement else None)
            found[place.case_id] = _Lesion(_annotated(shot, drawn), image, agreement)
        except UserError as error:
            report.refuse(place, error)
    for drawing in data.masks:
        _add_mask(drawing, data, found, report)
    for lesion in found.values():
        _agree(lesion, data)
    return list(found.values())


def _drawn(data: DataSet, images: Collection[str], report: Report) -> dict[str, list[Row]]:
    """The rows of ``annotations.csv`` by image."""
    found: dict[str, list[Row]] = {}
    for place, row in data.annotations:
        if place.case_id in images:
            found.setdefault(place.case_id, []).append(row)
            report.add(place, USED)
        else:
            report.refuse(place, UserError("E-PREP-IMAGE", f"no image {place.case_id!r}", "restore its row"))
    return found


def _annotated(shot: Shot, drawn: Mapping[str, list[Row]]) -> Shot:
    """The shot with the tool and the skill of those who drew it: one value, or ``mixed``."""
    rows = drawn.get(shot.place.case_id, [])
    meta = {name: {row[column] for row in rows} for name, column in (("tool", "tool"), ("skill", "skill_level"))}
    cells = {name: min(values) if len(values) == 1 else "mixed" for name, values in meta.items() if values}
    return replace(shot, meta=dict(shot.meta) | cells)


def _add_mask(row: MaskRow, data: DataSet, found: dict[str, _Lesion], report: Report) -> None:
    """Read one mask into its image. The row of an image that holds its own mask is reported with the image."""
    own = row.place.table.endswith("images.csv")
    lesion, annotator = found.get(row.image_id), file_name(row.annotator)
    try:
        if lesion is None:
            raise UserError("E-PREP-IMAGE", f"no usable image {row.image_id!r}", "see the report of images.csv")
        if annotator in lesion.masks:
            raise LeftOut(
                "a second mask by the same annotator",
                "keep one; under an annotator id of its own it would count as another person",
            )
        mask, remark = read_binary(file_inside(data.root, row.path, "mask"), lesion.image.native)
        lesion.masks[annotator] = mask
    except (UserError, LeftOut) as problem:
        if not own:
            report.refuse(row.place, problem)
        elif lesion is not None and isinstance(problem, UserError):
            _remark(lesion, Remark(f"no mask: {problem.what} ({problem.code})", problem.remedy))
        return
    if not own:
        report.add(row.place, USED, remark.what if remark else "" if mask.any() else "an empty mask")
    elif remark:
        _remark(lesion, remark)


def _remark(lesion: _Lesion, remark: Remark) -> None:
    lesion.shot = replace(lesion.shot, remarks=(*lesion.shot.remarks, remark))


def _agree(lesion: _Lesion, data: DataSet) -> None:
    """The agreement from the masks, where no table gives it; a remark where there is none."""
    lesion.agreement = lesion.agreement or of_masks(lesion.shot.place.case_id, lesion.masks)
    if lesion.masks and _consensus(lesion) is None:
        _remark(
            lesion, Remark("no consensus: no pixel is marked by more than half", "look whether they mean one lesion")
        )
    if lesion.agreement is None and data.layout is Layout.ISIC17:
        _remark(lesion, Remark("no agreement: fewer than two different annotators"))
    elif lesion.agreement is None:
        _remark(lesion, Remark(f"no agreement: {len(lesion.masks) or 'no'} annotator"))


def _groups(lesions: Sequence[_Lesion]) -> Groups:
    """Images of one patient, of one lesion, of one id or of equal bytes are one group."""
    groups, seen = Groups(), dict[str, str]()
    for lesion in lesions:
        name = file_name(lesion.shot.place.case_id)
        for key in (*lesion.shot.relatives, lesion.image.digest):
            groups.join(seen.setdefault(key, name), name)
    return groups


def _joined(same: Sequence[_Lesion]) -> _Lesion:
    """One case of an image that several data sets hold: the one with the most masks, and what the others know."""
    kept = max(same, key=lambda lesion: len(lesion.masks))
    if len(same) == 1:
        return kept
    measured = [lesion.agreement for lesion in same if lesion.agreement]
    kept.agreement = max(measured, key=lambda found: found.pairs) if measured else None
    remarks = [remark for remark in kept.shot.remarks if not (measured and remark.what.startswith("no agreement"))]
    given = {lesion.shot.diagnosis for lesion in same if lesion.shot.diagnosis}
    if len(given) > 1:
        remarks.append(Remark("no diagnosis: the data sets differ", "correct one of them"))
    elif given:
        remarks = [remark for remark in remarks if not remark.what.startswith("no diagnosis")]
    meta = {name: cell for lesion in (*same, kept) for name, cell in lesion.shot.meta.items() if cell}
    diagnosis = given.pop() if len(given) == 1 else ""
    kept.shot = replace(kept.shot, diagnosis=diagnosis, meta=meta, remarks=tuple(remarks))
    return kept


def _case(lesion: _Lesion, groups: Groups, out: Path) -> Case:
    shot, name = lesion.shot, file_name(lesion.shot.place.case_id)
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


def _consensus(lesion: _Lesion) -> np.ndarray | None:
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
