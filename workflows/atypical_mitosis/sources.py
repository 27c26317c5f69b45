"""The layouts in which atypical-mitosis data sets come, read as :class:`Figure`.

Three layouts of ``SOURCE`` are known:

``ami-br`` (index)
    ``index.csv`` with ``file, patch_id, label, vote_1..3, expert{1,2}_subtype, dataset, case_id, slide, scanner,
    domain, benchmark_split`` and the patches it names.
``ami-br`` (upstream)
    DeepMicroscopy/AMi-Br as cloned: ``AMI-BR.csv`` and ``patches/{atypical,normal}/{dataset}_{uid}.png``.
    Scanner and domain follow from the slide's number (MIDOG21: 1-50 Hamamatsu XR, 51-100 Hamamatsu S360, 101-150 Aperio
    CS2; TUPAC16: 1-23, 24-48, 49-73 are the three centres). It has no benchmark split: ``split`` stays empty.
``midog25``
    Any CSV with ``image_id, filename, coordinateX, coordinateY, Tumor, Scanner, Origin, Species, expert1, expert2,
    expert3, majority`` (Zenodo 10.5281/zenodo.16044804). A patch is the file anywhere under SOURCE whose name is
    ``image_id`` (``.png`` is added where it has no suffix); two files of one name are ambiguous and refused. The third
    expert was asked only where the first two differ, so vote_fraction is a share of the votes given.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from medmtl.errors import UserError
from medmtl.files import inside
from workflows.preparation import LeftOut, Row, header, read_table

CLASSES = ("normal", "atypical")
PHASES = (
    "NMF prometaphase",
    "NMF metaphase",
    "NMF ring shape",
    "NMF anaphase-telophase",
    "AMF segregation",
    "AMF multipolar",
    "AMF bipolar asymmetric",
    "AMF other",
)
_PHASE_SPELLING = {"AMF bipolar assymetric": "AMF bipolar asymmetric"}  # the data set's spelling -> English
_SCANNER_SPELLING = {"Hamammatsu XR": "Hamamatsu XR"}
_LETTERS = {"NMF": "normal", "AMF": "atypical", "": ""}
_SCANNERS = ("Hamamatsu NanoZoomer XR", "Hamamatsu NanoZoomer S360", "Aperio ScanScope CS2")
_MIDOG25_COLUMNS = {"image_id", "filename", "Tumor", "Scanner", "Origin", "Species", "majority"}


class Layout(StrEnum):
    AUTO = "auto"
    AMI_BR = "ami-br"
    MIDOG25 = "midog25"


@dataclass(frozen=True)
class Figure:
    """One source row: a mitotic figure with its labels, before its patch has been looked at."""

    case_id: str
    group: str
    domain: str
    patch: Path
    label: str
    votes: tuple[str, ...]  # "normal", "atypical", or "" where this expert was not asked
    meta: Row
    phases: tuple[str, ...] = ()
    split: str = ""

    def targets(self) -> Row:
        """The target cells; a missing label is left out."""
        given = [vote for vote in self.votes if vote]
        cells = {"atypical": self.label}
        cells |= {f"phase.expert{i}": phase for i, phase in enumerate(self.phases, 1)}
        cells |= {f"vote.expert{i}": vote for i, vote in enumerate(self.votes, 1)}
        cells["vote_fraction"] = f"{given.count('atypical') / len(given):.4f}" if given else ""
        return {name: cell for name, cell in cells.items() if cell}


@dataclass(frozen=True)
class Source:
    """The rows of a data set and how one of them is read."""

    name: str
    rows: list[tuple[int, Row]]
    read: Callable[[Row], Figure]


def open_source(source: Path, layout: Layout = Layout.AUTO) -> Source:
    """Find the table of ``source`` and how to read it."""
    if not source.is_dir():
        raise UserError("E-PREP-SOURCE", "no such folder", "give the folder of the data set", where=str(source))
    if layout != Layout.MIDOG25:
        if (source / "index.csv").is_file():
            rows = read_table(source / "index.csv", {"file", "patch_id", "label"})
            return Source("index.csv", rows, _IndexRow(source))
        if (source / "AMI-BR.csv").is_file():
            rows = read_table(source / "AMI-BR.csv", {"slide", "uid", "majority_atypical"})
            return Source("AMI-BR.csv", rows, _UpstreamRow(source))
    if layout != Layout.AMI_BR:
        found = [path for path in sorted(source.glob("*.csv")) if header(path) >= _MIDOG25_COLUMNS]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError("E-PREP-SOURCE", f"several tables: {names}", "keep one of them", where=source.name)
        if found:
            return Source(found[0].name, read_table(found[0], _MIDOG25_COLUMNS), _Midog25Row(source))
    raise UserError(
        "E-PREP-SOURCE",
        f"no table of layout {layout.value!r} in the folder",
        "it should hold index.csv or AMI-BR.csv (AMi-Br), or a CSV with the columns of MIDOG25; see --help",
        where=source.name,
    )


class _IndexRow:
    """Reads a row of ``index.csv``."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def __call__(self, row: Row) -> Figure:
        return Figure(
            row["patch_id"],
            row["case_id"],
            row["domain"],
            inside(self.source, row["file"]),
            _flag(row["label"]),
            tuple(_flag(row[f"vote_{i}"]) for i in (1, 2, 3)),
            {"dataset": row["dataset"], "scanner": row["scanner"], "slide": row["slide"]},
            tuple(_phase(row[f"expert{i}_subtype"]) for i in (1, 2)),
            row["benchmark_split"],
        )


class _UpstreamRow:
    """Reads a row of ``AMI-BR.csv``."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def __call__(self, row: Row) -> Figure:
        dataset, slide, label = row["dataset"], row["slide"], _flag(row["majority_atypical"])
        group, domain, scanner = _slide(dataset, slide)
        case_id = f"{dataset}_{row['uid']}"
        return Figure(
            case_id,
            group,
            domain,
            inside(self.source, f"patches/{label}/{case_id}.png"),
            label,
            tuple(_flag(row[f"expert{i}_atypical"]) for i in (1, 2, 3)),
            {"dataset": dataset, "scanner": scanner, "slide": slide},
            tuple(_phase(row[f"expert{i}_label"]) for i in (1, 2)),
        )


class _Midog25Row:
    """Reads a row of the MIDOG 2025 table; patches are looked up by file name anywhere under the source."""

    def __init__(self, source: Path) -> None:
        self.patches: dict[str, list[Path]] = {}
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in (".png", ".tif", ".tiff", ".jpg"):
                self.patches.setdefault(path.name, []).append(path)

    def __call__(self, row: Row) -> Figure:
        name = row["image_id"] if Path(row["image_id"]).suffix else f"{row['image_id']}.png"
        found = self.patches.get(name, [])
        if len(found) != 1:
            remedy = "keep one of them" if found else "restore it, anywhere under the source"
            raise LeftOut(f"{len(found)} files are named {name!r}, one was expected", remedy)
        scanner = _SCANNER_SPELLING.get(row["Scanner"], row["Scanner"])
        meta = {"dataset": "MIDOG25", "scanner": scanner, "slide": row["filename"]}
        number = _number(row["filename"])
        return Figure(
            f"MIDOG25_{Path(name).stem}",
            f"MIDOG21_{number:03d}" if number <= 150 else f"MIDOGPP_{number:03d}",
            f"{row['Tumor']}|{scanner}",
            found[0],
            _letters(row["majority"]),
            tuple(_letters(row.get(f"expert{i}", "")) for i in (1, 2, 3)),
            meta | {"tumor": row["Tumor"], "species": row["Species"], "origin": row["Origin"]},
        )


def _flag(cell: str) -> str:
    try:
        return {"0": "normal", "1": "atypical", "false": "normal", "true": "atypical", "": ""}[cell.lower()]
    except KeyError:
        raise LeftOut(f"{cell!r} is neither 0, 1, False nor True") from None


def _letters(cell: str) -> str:
    if cell not in _LETTERS:
        raise LeftOut(f"{cell!r} is neither NMF nor AMF")
    return _LETTERS[cell]


def _phase(cell: str) -> str:
    phase = _PHASE_SPELLING.get(cell, cell)
    if phase and phase not in PHASES:
        raise LeftOut(f"unknown phase {cell!r}")
    return phase


def _number(slide: str) -> int:
    match = re.match(r"\d+", slide)
    if match is None:
        raise LeftOut(f"slide {slide!r} does not begin with its number")
    return int(match.group())


def _slide(dataset: str, slide: str) -> tuple[str, str, str]:
    """Group, domain and scanner of an AMi-Br slide, from its number."""
    number = _number(slide)
    if dataset == "MIDOG21" and 1 <= number <= 150:
        scanner = _SCANNERS[(number - 1) // 50]
        return f"MIDOG21_{number:03d}", scanner, scanner
    if dataset == "TUPAC16" and 1 <= number <= 73:
        centre = "TUPAC-A(01-23)" if number <= 23 else "TUPAC-B(24-48)" if number <= 48 else "TUPAC-C(49-73)"
        return f"TUPAC16_{number:02d}", centre, ""
    raise LeftOut(f"slide {slide!r} of {dataset!r} is outside the known ranges")
