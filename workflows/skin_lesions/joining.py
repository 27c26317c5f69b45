"""One case of an image that several data sets hold: its masks united, what each of them knows, nothing overwritten.

An id of the ISIC Archive is one picture in every data set of the archive, whatever its size. Elsewhere an id is the
folder's own: two folders that share one hold the same picture where bytes or pixels are equal, and otherwise two.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medmtl.errors import UserError
from medmtl.io.raster import read_image
from workflows.preparation import USED, Groups, LeftOut, Place, Placed, Remark, Report, file_name, remarked
from workflows.skin_lesions.agreement import Agreement, of_masks, remarks
from workflows.skin_lesions.sources import Layout, MaskRow, Pair, Shot, no_image

_ARCHIVE = (Layout.ISIC16, Layout.ISIC17)
_NO_DIAGNOSIS = "no diagnosis"


@dataclass(frozen=True)
class Drawing:
    """A mask of an image with its row: bool [H, W] of the source image."""

    row: MaskRow
    pixels: np.ndarray
    remark: Remark | None

    def account(self, report: Report) -> None:
        """Report the row as used; a row of ``images.csv`` is the image's, which says it."""
        if not self.row.own:
            empty = Remark("an empty mask", "check that there is nothing to mark, or remove the row")
            found = self.remark or (None if self.pixels.any() else empty)
            report.add(self.row.place, USED, *remarked([found] if found else []))


@dataclass
class Lesion:
    """An image in place with everything that one data set knows of it, or several together."""

    shot: Shot
    image: Placed
    layout: Layout
    agreement: Agreement | None = None  # as published, until ``joined`` has looked at the masks
    pairs: list[Pair] = field(default_factory=list)  # as published
    drawings: dict[str, Drawing] = field(default_factory=dict)  # by column: the annotator with the folder
    others: list[tuple[Place, list[Remark]]] = field(default_factory=list)  # rows of other data sets joined with it

    @property
    def name(self) -> str:
        """The id of its case."""
        return file_name(self.shot.place.case_id)

    @property
    def masks(self) -> Mapping[str, np.ndarray]:
        return {column: drawing.pixels for column, drawing in self.drawings.items()}

    def remark(self, *found: Remark) -> None:
        self.shot = replace(self.shot, remarks=(*self.shot.remarks, *found))


def by_picture(lesions: Iterable[Lesion], report: Report) -> list[list[Lesion]]:
    """The lesions of each case id; another picture under it than the first (the
    archive's, where it has the id) is an error row, and so are its masks."""
    named: dict[str, list[Lesion]] = {}
    for lesion in lesions:
        named.setdefault(lesion.name.casefold(), []).append(lesion)
    return [_first_picture(same, report) if len(same) > 1 else same for same in named.values()]


def _first_picture(same: Sequence[Lesion], report: Report) -> list[Lesion]:
    pictures = Groups()  # of tables: each has the id once
    for index, one in enumerate(same):
        for other in same[:index]:
            if (one.layout in _ARCHIVE and other.layout in _ARCHIVE) or _equal(one, other):
                pictures.join(one.shot.place.table, other.shot.place.table)
    first, kept = next((one for one in same if one.layout in _ARCHIVE), same[0]), list[Lesion]()
    for lesion in same:
        if pictures.name(lesion.shot.place.table) == pictures.name(first.shot.place.table):
            kept.append(lesion)
        else:
            _refuse(lesion, first, report)
    return kept


def _equal(one: Lesion, other: Lesion) -> bool:
    """Whether two files hold one picture: equal bytes, or equal pixels in another format."""
    if one.image.digest == other.image.digest:
        return True
    if one.image.native != other.image.native:
        return False
    return np.array_equal(read_image(one.shot.image, channels=3), read_image(other.shot.image, channels=3))


def _refuse(lesion: Lesion, first: Lesion, report: Report) -> None:
    place = lesion.shot.place
    what = f"another picture than that of {first.shot.place.table} under the same id"
    remedy = "give one of them another id, in images.csv and masks.csv"
    report.refuse(place, UserError("E-PREP-PICTURE", what, remedy))
    for drawing in lesion.drawings.values():
        if not drawing.row.own:
            report.refuse(drawing.row.place, no_image(drawing.row.image_id))


def joined(same: Sequence[Lesion], report: Report) -> Lesion:
    """One lesion of several with one picture: the image with most masks, every annotator's mask on it, all labels.

    Rows of masks are accounted for here, those of images are left to the caller.
    """
    kept = max(same, key=lambda lesion: len(lesion.drawings))
    for other in same:
        if other is not kept:
            said = [remark for remark in other.shot.remarks if not remark.what.startswith(_NO_DIAGNOSIS)]
            first = Remark(f"joined with the image of {kept.shot.place.table}")
            kept.others.append((other.shot.place, [first, *said, *_unite(kept, other, report)]))
    kept.shot = _known(kept, same)
    for drawing in kept.drawings.values():
        drawing.account(report)
    kept.pairs = [pair for lesion in same for pair in lesion.pairs]
    measured = [lesion.agreement for lesion in same] + [of_masks(kept.name, kept.masks)]
    kept.agreement = max(filter(None, measured), key=lambda found: found.pairs, default=None)
    kept.remark(*remarks(kept.name, kept.masks, kept.agreement))
    return kept


def _unite(kept: Lesion, other: Lesion, report: Report) -> list[Remark]:
    """Give ``kept`` the masks of ``other``; report those it cannot have, or return why where an image's row says it."""
    if not other.drawings:
        return []
    people = {drawing.row.person: drawing for drawing in kept.drawings.values()}
    equal, found = _equal(kept, other), []
    for column, drawing in other.drawings.items():
        problem = _clash(column, drawing, kept, people) if equal else _other_grid(kept)
        if problem is None:
            kept.drawings[column] = drawing
        elif drawing.row.own:
            found.append(Remark(f"its mask is not used: {problem.reason}", problem.remedy))
        else:
            report.refuse(drawing.row.place, problem)
    return found


def _other_grid(kept: Lesion) -> LeftOut:
    table = kept.shot.place.table
    return LeftOut(f"drawn on other pixels than those of {table}", f"draw it on the image of {table}")


def _clash(column: str, drawing: Drawing, kept: Lesion, people: Mapping[str, Drawing]) -> LeftOut | None:
    """Why a mask of another folder cannot stand beside those of ``kept``: the person or the column is there already."""
    if (first := people.get(drawing.row.person)) is not None:
        equal = np.array_equal(first.pixels, drawing.pixels)
        return LeftOut(
            f"a second mask by annotator {drawing.row.person!r}, "
            f"{'equal to' if equal else 'other than'} that of {first.row.place.table}",
            "" if equal else "keep one; another person needs another annotator id",
        )
    if column in kept.drawings:
        what = f"its column lesion.{column} is that of {kept.drawings[column].row.place.table}"
        return LeftOut(what, "rename the folder or the annotator")
    return None


def _known(kept: Lesion, same: Sequence[Lesion]) -> Shot:
    """What the data sets know together; a diagnosis on which they differ is nobody's, a split is the kept image's."""
    if len(same) == 1:
        return kept.shot
    shots, found = [kept.shot, *(lesion.shot for lesion in same)], list(kept.shot.remarks)
    diagnoses = {shot.diagnosis for shot in shots} - {""}
    if diagnoses:
        found = [remark for remark in found if not remark.what.startswith(_NO_DIAGNOSIS)]
    if len(diagnoses) > 1:
        found.append(Remark(f"{_NO_DIAGNOSIS}: the data sets differ", "correct one of them"))
    splits = list(dict.fromkeys(shot.split for shot in shots if shot.split))
    if len(splits) > 1:
        found.append(Remark(f"the data sets differ in the split, {splits[0]} is taken", "correct one of them"))
    return replace(
        kept.shot,
        diagnosis=diagnoses.pop() if len(diagnoses) == 1 else "",
        split=splits[0] if splits else "",
        meta={name: cell for shot in reversed(shots) for name, cell in shot.meta.items() if cell},
        remarks=tuple(found),
    )
