"""The layouts in which colposcopy images come, read as :class:`Picture`.

Three layouts of ``SOURCE`` are known:

``annocerv-384``
    ``images.csv`` with ``image_id, case_id, group_id, image, mask, fill_status, has_acetowhite, swede_score, swede_ge5,
    quality_flag``, and what it names: the acetic-acid images of AnnoCerv at 384 px with filled masks.
``annocerv``
    iclx/AnnoCerv as cloned: ``Case <n>/C<n>{Aceto,Iod,Green} (<i>).jpg``, for each Aceto image a PNG of the same name
    with the colour-coded curves of ``outlines.py``, and ``swede_scores.csv``, which has **no header**: line n is case
    n. The folder may be the clone itself or its ``dataset``.
``folder``
    Images and one CSV with ``image`` and ``patient`` (a pseudonym) and any of ``cin, swede, acetowhite, mask, site,
    split, visit, age, transformation_zone, hpv, comorbidity, filter, quality``; further columns are carried along only
    when they are called ``meta.<name>``, so that no identifier slips through.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from medmtl.data.case import SPLITS
from medmtl.errors import UserError
from workflows.cervical_screening import labels
from workflows.preparation import LeftOut, Place, Remark, Row, file_inside, file_name, header, read_table

MISMATCHED = frozenset({"16", "21"})  # AnnoCerv: annotations of other pictures, whose own are missing
FILTERS = {"Aceto": "acetic", "Iod": "iodine", "Green": "green"}
_SCORES = "swede_scores.csv"
_NAME = re.compile(r"C(?P<case>\d+)\s?(?P<kind>Aceto|Iod|Green)\s?\((?P<index>\d+)\)", re.IGNORECASE)
_FLAT_COLUMNS = {"image_id", "case_id", "group_id", "image", "mask", "has_acetowhite", "swede_score", "quality_flag"}
_FOLDER_COLUMNS = {"image", "patient"}
_KNOWN = {"image", "patient", "site", "split", "cin", "swede", "acetowhite", "mask", "age", *labels.META}


class Layout(StrEnum):
    AUTO = "auto"
    ANNOCERV_384 = "annocerv-384"
    ANNOCERV = "annocerv"
    FOLDER = "folder"


@dataclass(frozen=True)
class Picture:
    """One source row: an image with its labels, before any of its files has been looked at."""

    place: Place
    patient: str
    image: Path
    domain: str
    targets: Row  # empty cells are missing labels
    meta: Row
    mask: Path | None = None  # a filled lesion
    overlay: Path | None = None  # colour-coded curves
    split: str = ""
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Source:
    """The rows of a data set and how one of them is read; ``read`` raises UserError or LeftOut."""

    name: str
    rows: list[tuple[Place, Row]]
    read: Callable[[Place, Row], Picture]
    unread: tuple[str, ...] = field(default=())  # columns that nothing reads


def open_source(source: Path, layout: Layout = Layout.AUTO) -> Source:
    """Find the table or the folders of ``source`` and how to read them."""
    if not source.is_dir():
        raise UserError("E-PREP-SOURCE", "no such folder", "give the folder of the data set", where=str(source))
    if layout in (Layout.AUTO, Layout.ANNOCERV_384) and header(source / "images.csv") >= _FLAT_COLUMNS:
        rows = read_table(source / "images.csv", _FLAT_COLUMNS)
        places = [(Place("images.csv", number, row["image_id"]), row) for number, row in rows]
        return Source("images.csv", places, lambda place, row: _flat(source, place, row))
    if layout in (Layout.AUTO, Layout.ANNOCERV):
        for folder in (source, source / "dataset"):
            if any(folder.glob("Case *")) and (folder / _SCORES).is_file():
                return _upstream(folder)
    if layout in (Layout.AUTO, Layout.FOLDER):
        found = [path for path in sorted(source.glob("*.csv")) if header(path) >= _FOLDER_COLUMNS]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError("E-PREP-SOURCE", f"several tables: {names}", "keep one of them", where=source.name)
        if found:
            return _folder(source, found[0])
    raise UserError(
        "E-PREP-SOURCE",
        f"nothing of layout {layout.value!r} in the folder",
        "it should hold images.csv (AnnoCerv at 384 px), the folders 'Case <n>' with swede_scores.csv (AnnoCerv as "
        "cloned), or a CSV with the columns image and patient; see --help",
        where=source.name,
    )


def _flat(source: Path, place: Place, row: Row) -> Picture:
    if row["quality_flag"] == "image_mismatch":
        raise LeftOut("image_mismatch: score and outlines belong to another picture")
    targets = labels.swede_targets(row["swede_score"])
    at_least = labels.flag(row.get("swede_ge5", ""), labels.SUSPICIOUS)
    if at_least and targets and at_least != targets["suspicious"]:
        raise UserError(
            "E-PREP-SWEDE",
            f"swede_ge5 = {row['swede_ge5']} contradicts the score {row['swede_score']}",
            "correct one of the two cells",
        )
    targets["acetowhite"] = labels.flag(row["has_acetowhite"], labels.ACETOWHITE)
    status = row.get("fill_status", "")
    remarks = () if row["mask"] else (Remark(f"no lesion mask: fill_status {status or 'not given'}"),)
    width = row.get("original_width", "")
    meta = {"filter": "acetic", "quality": row["quality_flag"].split("_of_")[0] or "ok", "record": row["case_id"]}
    meta |= {"mask_status": status, "original_width": width, "upstream_split": row.get("upstream_split", "")}
    return Picture(
        place,
        row["group_id"],
        file_inside(source, row["image"], "image"),
        "AnnoCerv",
        targets,
        meta,
        mask=file_inside(source, row["mask"], "mask") if row["mask"] else None,
        remarks=remarks,
    )


def _upstream(folder: Path) -> Source:
    scores = (folder / _SCORES).read_text(encoding="utf-8-sig").split("\n")
    pictures = []
    for path in _images(folder):
        match = _NAME.fullmatch(path.stem)
        case = match["case"] if match else ""
        identity = f"C{case}{match['kind']}_{match['index']}" if match else file_name(path.stem)
        row = {"path": path.relative_to(folder).as_posix(), "case": case, "kind": match["kind"] if match else ""}
        line = int(case) if case else 0
        row["swede"] = scores[line - 1].strip() if 0 < line <= len(scores) else ""
        # The table's row is the case's line of scores; a file that is of no case has none.
        pictures.append((Place(_SCORES, line, identity), row))
    seen = {row["case"] for _, row in pictures}
    lacking = [number for number, score in enumerate(scores, 1) if score.strip() and str(number) not in seen]
    pictures += [(Place(_SCORES, n, f"C{n}"), {"path": "", "case": str(n), "kind": "", "swede": ""}) for n in lacking]
    return Source(folder.name, pictures, lambda place, row: _upstream_picture(folder, place, row))


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("Case */*")):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            yield path


def _upstream_picture(folder: Path, place: Place, row: Row) -> Picture:
    if not row["case"]:
        raise UserError(
            "E-PREP-NAME", f"{Path(row['path']).name!r} is not named like 'C1Aceto (1).jpg'", "rename or remove it"
        )
    if not row["path"]:
        raise LeftOut("no image of this case", f"restore the folder 'Case {row['case']}'")
    if row["case"] in MISMATCHED:
        raise LeftOut("image_mismatch: score and outlines belong to another picture")
    filtered = FILTERS[row["kind"].capitalize()]
    targets = labels.swede_targets(row["swede"])
    overlay = folder / Path(row["path"]).with_suffix(".png")
    remarks = [] if targets else [Remark("no Swede score", f"give line {row['case']} of swede_scores.csv")]
    if filtered == "acetic" and not overlay.is_file():
        remarks.append(Remark("no overlay, hence no lesion mask", f"restore {overlay.name}"))
    return Picture(
        place,
        f"case_{int(row['case']):03d}",
        folder / row["path"],
        "AnnoCerv",
        targets,
        {"filter": filtered, "record": row["case"]},
        overlay=overlay if filtered == "acetic" and overlay.is_file() else None,
        remarks=tuple(remarks),
    )


def _folder(source: Path, table: Path) -> Source:
    rows = read_table(table, _FOLDER_COLUMNS)
    names = [Path(row["image"]).stem for _, row in rows]
    places = []
    for (number, row), name in zip(rows, names, strict=True):
        unique = name if names.count(name) == 1 else Path(row["image"]).with_suffix("").as_posix()
        places.append((Place(table.name, number, file_name(unique)), row))
    unread = tuple(sorted(name for name in header(table) - _KNOWN if not name.startswith("meta.")))
    return Source(table.name, places, lambda place, row: _user_picture(source, place, row), unread)


def _user_picture(source: Path, place: Place, row: Row) -> Picture:
    if not row["patient"]:
        raise UserError("E-PREP-PATIENT", "no patient", "give each row the patient's pseudonym: splits are by patient")
    if row.get("split", "") not in ("", *SPLITS):
        raise UserError("E-PREP-SPLIT", f"split {row['split']!r}", f"write one of {', '.join(SPLITS)}, or nothing")
    targets = labels.swede_targets(row.get("swede", ""))
    grade, targets["cin2plus"] = labels.histology(row.get("cin", ""))
    targets["acetowhite"] = labels.flag(row.get("acetowhite", ""), labels.ACETOWHITE)
    meta = {"histology": grade, **labels.age(row.get("age", ""))}
    meta |= {name: read(row.get(name, "")) for name, read in labels.META.items()}
    meta |= {name.removeprefix("meta."): cell for name, cell in row.items() if name.startswith("meta.")}
    return Picture(
        place,
        row["patient"],
        file_inside(source, row["image"], "image"),
        row.get("site", ""),
        targets,
        meta,
        mask=file_inside(source, row["mask"], "mask") if row.get("mask") else None,
        split=row.get("split", ""),
    )
