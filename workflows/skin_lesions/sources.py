"""The data sets of images of skin lesions, read as :class:`Shot` and :class:`MaskRow`.

Every data set is a folder with ``images.csv`` (an id, ``file``, what is known) and, where its columns say so, masks:

``isic17``   IMA++ tables: ``images.csv`` with ``isic_id, isic2017_split``, ``pairwise_iaa.csv`` (Dice of every pair of
             masks of an image) and ``annotations.csv`` (who drew, with which tool and skill). No masks.
``isic16``   ``images.csv`` with ``isic_id, mask``: one mask per image, by nobody in particular.
``pad``      ``images.csv`` with ``image_id, malignant, fitspatrick``, ``masks.csv`` with ``image_id, annotator, mask``.
``plain``    Your own: ``images.csv`` with ``image_id, file`` and any of ``patient_id, lesion_id, domain, diagnosis,
             age, sex, site, split``, and ``masks.csv`` as above.
``dermxdb``  ``masks.csv`` with ``characteristic, labeller``, and ``pairwise_dice.csv``; no images: ``agreement.py``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from medmtl.data.case import SPLITS
from medmtl.errors import UserError
from workflows.preparation import Place, Remark, Row, file_inside, file_name, header, read_table

DIAGNOSES = ("benign", "malignant")
CONSENSUS = frozenset({"ST", "MV"})  # IMA++: STAPLE and majority vote
_META = {  # meta column: the columns of the tables that hold it
    "sex": ("sex", "gender"),
    "site": ("anatom_site", "region", "site"),
    "skin_type": ("fitspatrick",),
    "diagnosis_name": ("diagnosis_3", "diagnostic"),
    "quality": ("curator_group",),
    "biopsied": ("biopsed",),
    "upstream_split": ("isic2017_split",),
}
_PAIRED = {  # column of a table of pairs: that of IMA++
    "jaccard": "jaccard",
    "hd95": "hd95_px",
    "assd": "assd_px",
    **{f"{name}.{side}": f"{name}{number}" for name in ("tool", "skill") for side, number in (("a", 1), ("b", 2))},
}


class Layout(StrEnum):
    ISIC17 = "isic17"
    ISIC16 = "isic16"
    PAD = "pad"
    PLAIN = "plain"
    DERMXDB = "dermxdb"


@dataclass(frozen=True)
class Shot:
    """One row of ``images.csv``, before its file has been looked at."""

    place: Place
    image: Path
    domain: str
    split: str
    relatives: tuple[str, ...]  # the patient, the lesion: images that share one belong to one group
    diagnosis: str
    agreement: tuple[float, int] | None  # as published: mean Dice over pairs of annotators, number of pairs
    meta: Row
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class MaskRow:
    """One mask by one annotator.

    A published data set has its own people; ``q1`` in two of your folders is one person, whatever they are called.
    """

    place: Place
    image_id: str
    annotator: str  # with the data set, as the column is called
    person: str
    path: str  # as the table gives it, relative to the data set

    @property
    def own(self) -> bool:
        """Whether the row is the image's, too."""
        return self.place.table.endswith("images.csv")


@dataclass(frozen=True)
class Pair:
    """How far two annotators agree on one image."""

    place: Place
    image_id: str
    annotators: tuple[str, str]
    dice: str
    more: Row  # further columns of ``pairs.csv``, as `medmtl agreement --pairs` reads it


@dataclass(frozen=True)
class DataSet:
    """A folder of one layout: its rows and how one of ``images.csv`` is read."""

    name: str
    root: Path
    layout: Layout
    images: list[tuple[Place, Row]]
    read: Callable[[Place, Row], Shot]
    masks: list[MaskRow]
    pairs: list[Pair]
    annotations: list[tuple[Place, Row]]  # who drew what, with which tool and skill


def layout_of(folder: Path) -> Layout | None:
    """Which data set ``folder`` holds, by the columns of its tables; None where none is known."""
    images, masks = header(folder / "images.csv"), header(folder / "masks.csv")
    if masks >= {"image_id", "characteristic", "labeller", "mask"} and (folder / "pairwise_dice.csv").is_file():
        return Layout.DERMXDB
    if images >= {"isic_id", "file", "isic2017_split"} and (folder / "pairwise_iaa.csv").is_file():
        return Layout.ISIC17
    if images >= {"isic_id", "file", "mask"}:
        return Layout.ISIC16
    if images >= {"image_id", "file"} and masks >= {"image_id", "annotator", "mask"}:
        return Layout.PAD if "fitspatrick" in images else Layout.PLAIN
    return None


def data_sets(sources: list[Path]) -> list[tuple[Path, Layout]]:
    """The data sets among ``sources``: each is one itself, or a folder that holds some."""
    found = []
    for source in sources:
        if not source.is_dir():
            raise UserError("E-PREP-SOURCE", "no such folder", "give the folder of a data set", where=str(source))
        inner = [source] if layout_of(source) else sorted(path for path in source.iterdir() if path.is_dir())
        known = [(folder, layout) for folder in inner if (layout := layout_of(folder))]
        if not known:
            raise UserError(
                "E-PREP-SOURCE",
                "no data set of a known layout in the folder",
                "it should hold images.csv with the columns image_id and file, and masks.csv; see --help",
                where=source.name,
            )
        found += known
    names = [file_name(folder.name).casefold() for folder, _ in dict.fromkeys(found)]  # where their images are written
    twice = next((folder.name for folder, _ in found if names.count(file_name(folder.name).casefold()) > 1), None)
    if twice is not None:
        raise UserError("E-PREP-SOURCE", f"two data sets are called {twice!r}", "rename one of the folders")
    return list(dict.fromkeys(found))


def open_data_set(folder: Path, layout: Layout) -> DataSet:
    """Read the tables of one data set of images."""
    key = "isic_id" if layout in (Layout.ISIC16, Layout.ISIC17) else "image_id"
    table = f"{folder.name}/images.csv"
    rows = read_table(folder / "images.csv", {key, "file"})
    images = [(Place(table, number, row[key]), row) for number, row in rows]
    masks = list(_masks(folder, layout, images))
    pairs, annotations = (_pairs(folder), _annotations(folder)) if layout is Layout.ISIC17 else ([], [])
    return DataSet(
        folder.name, folder, layout, images, lambda p, row: _shot(folder, layout, p, row), masks, pairs, annotations
    )


def _masks(folder: Path, layout: Layout, images: list[tuple[Place, Row]]) -> Iterator[MaskRow]:
    if layout is Layout.ISIC16:  # the image's own row is the mask's, too
        yield from (
            MaskRow(place, place.case_id, "isic16", "isic16", row["mask"]) for place, row in images if row["mask"]
        )
    elif layout is not Layout.ISIC17:
        prefix = "pad" if layout is Layout.PAD else folder.name
        for number, row in read_table(folder / "masks.csv", {"image_id", "annotator", "mask"}):
            place = Place(f"{folder.name}/masks.csv", number, row["image_id"])
            annotator = file_name(f"{prefix}_{row['annotator']}")
            person = annotator if layout is Layout.PAD else row["annotator"]
            yield MaskRow(place, row["image_id"], annotator, person, row["mask"])


def _pairs(folder: Path) -> list[Pair]:
    rows = read_table(folder / "pairwise_iaa.csv", {"isic_id", "annotator1", "annotator2", "dice"})
    return [
        Pair(
            Place(f"{folder.name}/pairwise_iaa.csv", number, row["isic_id"]),
            row["isic_id"],
            (row["annotator1"], row["annotator2"]),
            row["dice"],
            {name: row[column] for name, column in _PAIRED.items() if row.get(column)},
        )
        for number, row in rows
    ]


def _annotations(folder: Path) -> list[tuple[Place, Row]]:
    if not (folder / "annotations.csv").is_file():
        return []
    table = f"{folder.name}/annotations.csv"
    rows = read_table(folder / "annotations.csv", {"ISIC_id", "annotator", "tool", "skill_level"})
    return [(Place(table, number, row["ISIC_id"]), row) for number, row in rows]


def _shot(folder: Path, layout: Layout, place: Place, row: Row) -> Shot:
    if not place.case_id:
        raise UserError("E-PREP-ID", "no image id", "give every image an id")
    if row.get("split", "") not in ("", *SPLITS):
        raise UserError("E-PREP-SPLIT", f"split {row['split']!r}", f"write one of {', '.join(SPLITS)}, or nothing")
    domains = {Layout.ISIC17: "ISIC 2017", Layout.ISIC16: "ISIC 2016", Layout.PAD: "PAD-UFES-20"}
    domain = domains.get(layout) or row.get("domain") or folder.name
    diagnosis, remarks = _diagnosis(row)
    keys = [f"{folder.name} {name} {row[name]}" for name in ("patient_id", "lesion_id") if row.get(name)]
    published = row.get("iaa_dice_mean", "") if layout is Layout.ISIC16 else ""
    meta = {name: next((row[c] for c in columns if row.get(c)), "") for name, columns in _META.items()}
    meta["sex"] = meta["sex"].lower()
    return Shot(
        place,
        file_inside(folder, row["file"], "image"),
        domain,
        row.get("split", ""),
        tuple(keys),
        diagnosis,
        (unit(published), 1) if published else None,  # the table does not say of how many pairs: at least one
        meta | _age(row.get("age_approx") or row.get("age") or ""),
        remarks,
    )


def _diagnosis(row: Row) -> tuple[str, tuple[Remark, ...]]:
    cell = (row.get("benign_malignant") or row.get("diagnosis") or row.get("malignant") or "").lower()
    cell = {"0": "benign", "1": "malignant"}.get(cell, cell)
    if cell in DIAGNOSES:
        return cell, ()
    what = f"no diagnosis: {cell!r} is neither benign nor malignant" if cell else "no diagnosis"
    return "", (Remark(what),)


def no_image(name: str) -> UserError:
    """What a row of another table meets where its image is not there, or not usable."""
    return UserError("E-PREP-IMAGE", f"no usable image {name!r}", "restore its row, or see the report of images.csv")


def unit(cell: str) -> float:
    """A Dice coefficient; E-PREP-DICE outside 0 to 1."""
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError("E-PREP-DICE", f"Dice {cell!r}; 0 to 1 was expected", "correct the cell, or empty it")
    return value


def _age(cell: str) -> Row:
    try:
        years = float(cell)
    except ValueError:
        return {}
    decade = int(years) // 10 * 10
    return {"age": f"{years:g}", "age_band": f"{decade}-{decade + 9}"}
