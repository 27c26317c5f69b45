"""How far annotators agree, as files: per image, by annotator and trait, what to know, a page with outlines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medmtl.agreement.levels import LEVEL_COLUMNS, agreement_by
from medmtl.agreement.masks import Annotated
from medmtl.agreement.pairs import DISTANCE, image_agreement, known_measure, pair_table, problems
from medmtl.bars import bar
from medmtl.data.case import Case, Manifest, read_manifest
from medmtl.errors import EnvironmentFailure, NothingUsable, UserError
from medmtl.evaluation.annotators import (
    PROBLEM_COLUMNS,
    annotated,
    annotators_of,
    pair_frame,
    read_pairs,
    with_cases,
)
from medmtl.evaluation.html import html_table, plots_html, short_number
from medmtl.evaluation.plots.outlines import Drawn, outlines
from medmtl.files import inside, write_atomic
from medmtl.io.raster import read_image

_PAIR = ["image", "a", "b"]
_SIDE = 480  # longest side of a picture on the page
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #111827; max-width: 1100px;
  margin: 0 auto; padding: 2rem 1.25rem; } h2 { border-bottom: 2px solid #0072b2; font-size: 1.2rem; margin-top: 2rem; }
.banner { background: #fff4e5; border-left: 4px solid #d55e00; padding: .5rem .9rem; font-weight: 600; }
.soft, small { color: #6b7280; } .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #e5e7eb; text-align: right;
  font-variant-numeric: tabular-nums; } th { color: #6b7280; }
th:first-child, td:first-child, .text { text-align: left; }
figure { margin: 0; } figure img { max-width: 100%; height: auto; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # no script, no font, no request


@dataclass(frozen=True)
class AgreementJob:
    """What is asked of a manifest: which masks (``task``), which measures, by what, and how many pictures."""

    manifest: Path
    out: Path
    task: str = ""  # "": the only one with several annotators
    pairs: Path | None = None  # published pairs, beside the masks or instead of them
    measures: tuple[str, ...] = ("dice",)
    by: tuple[str, ...] = ()
    label: int | None = None
    tolerance: float = 2.0
    pictures: int = 6


@dataclass(frozen=True)
class AgreementFound:
    """What came of it; ``failed`` images have masks that could not be compared, and a row in ``problems``."""

    images: pd.DataFrame
    by: pd.DataFrame
    problems: pd.DataFrame
    failed: int
    report: Path


def measure_agreement(job: AgreementJob) -> AgreementFound:
    """Write ``pairs.csv``, ``agreement.csv``, ``by.csv``, ``problems.csv`` and ``report.html`` into ``job.out``.

    The pairs of an image are those of its masks and, where two people are paired in ``job.pairs``, theirs as published.
    Raises UserError for settings that do not fit the manifest, NothingUsable where no image has a pair.
    """
    for measure in job.measures:
        known_measure(measure)
    manifest = read_manifest(job.manifest)
    published, wrong = read_pairs(job.pairs, manifest) if job.pairs else (pair_frame([]), _problem_frame([]))
    task, drawn, said, failed = _measured(job, manifest)
    pairs = _together([published, _without(drawn, published)])
    pairs = pairs.sort_values(_PAIR, kind="stable", ignore_index=True)
    found = pd.concat([wrong, said[~((said["code"] == "W-AGR-ONE") & said["image"].isin(published["image"]))]])
    if pairs.empty:
        write_atomic(job.out / "problems.csv", _csv(found))
        raise NothingUsable(
            "E-AGR-NOTHING", "no image has masks of two annotators", "see problems.csv", where=manifest.name
        )
    pairs = with_cases(pairs, manifest, job.by)
    by, images = _by(pairs, job), _images(pairs, job.measures)
    for name, table in (("pairs", pairs), ("agreement", images), ("by", by), ("problems", found)):
        write_atomic(job.out / f"{name}.csv", _csv(table))
    page = _page(job, manifest, task, images, by, found)
    return AgreementFound(images, by, found, failed, write_atomic(job.out / "report.html", page))


def _measured(job: AgreementJob, manifest: Manifest) -> tuple[str, pd.DataFrame, pd.DataFrame, int]:
    """The task, the pairs of its masks, what to know of them, and how many images could not be compared."""
    try:
        task, _ = annotators_of(manifest, job.task)
    except UserError:
        if job.pairs and not job.task:
            return "", pair_frame([]), _problem_frame([]), 0
        raise
    tables, rows, failed = [pair_frame([])], [_problem_frame([])], 0
    with bar("Comparing masks", len(manifest.cases)) as advance:
        for case in manifest.cases:
            try:
                item = annotated(case, manifest, task, label=job.label)
                if item is not None:
                    tables.append(pair_table([item], tolerance=job.tolerance))
                    rows.append(problems([item]))
            except EnvironmentFailure:
                raise
            except UserError as error:
                failed += 1
                rows.append(_problem_frame([(case.case_id, error.code, error.what, error.remedy)]))
            advance(1)
    return task, _together(tables), pd.concat(rows, ignore_index=True), failed


def _together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of pairs as one; those without a row would blur its types."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _without(drawn: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The pairs of masks that are not published. (Two people may be published twice, where one of them drew twice.)"""
    known = pd.MultiIndex.from_frame(published[_PAIR].astype(str))
    return drawn[~pd.MultiIndex.from_frame(drawn[_PAIR].astype(str)).isin(known)]


def _problem_frame(rows: Sequence[tuple[str, str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=PROBLEM_COLUMNS)


def _images(pairs: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """A row for each image: the mean of every measure over its pairs, and how many pairs these are."""
    table = image_agreement(pairs, measure=measures[0])[["image", "group", "annotators"]]
    for measure in measures:
        one = image_agreement(pairs, measure=measure)
        table[measure], table[f"{measure}.pairs"] = one["agreement"], one["pairs"]
    return table


def _by(pairs: pd.DataFrame, job: AgreementJob) -> pd.DataFrame:
    parts = [
        agreement_by(pairs, name, measure=measure).assign(by=name, measure=measure)
        for measure in job.measures
        for name in dict.fromkeys(("all", "annotator", *job.by))
    ]
    return pd.concat(parts, ignore_index=True)[["measure", "by", *LEVEL_COLUMNS]]


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _page(
    job: AgreementJob, manifest: Manifest, task: str, images: pd.DataFrame, by: pd.DataFrame, found: pd.DataFrame
) -> str:
    sections = [
        _levels(by),
        f"<h2>Where they differ most</h2>{_pictures(job, manifest, task, images)}" if job.pictures else "",
        f"<h2>What to know</h2>{_known(found)}",
    ]
    title = f"Agreement of annotators{f': {task}' if task else ''}"
    facts = f"{len(images)} images with two annotators or more, {images['group'].nunique()} groups, of {manifest.name}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        '<p class="banner">Research use only. Not a medical device; not for diagnosis or treatment.</p>'
        f"<p>{escape(facts)}.</p>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _levels(by: pd.DataFrame) -> str:
    rows = [
        [
            escape(f"{row['by']}: {row['level']}" if row["by"] != "all" else "all pairs"),
            escape(str(row["measure"])),
            short_number(row["value"]),
            f"<small>{escape(row['reason'])}</small>"
            if row["reason"]
            else f"{short_number(row['low'])} to {short_number(row['high'])}",
            *(str(row[name]) for name in ("pairs", "undefined", "images", "groups")),
        ]
        for row in by.to_dict("records")
    ]
    heads = ("pairs of", "measure", "mean", "95 % interval", "pairs", "undefined", "images", "groups")
    return (
        "<h2>By annotator and trait</h2><p class=soft>Means over pairs; a pair counts for both of its annotators. "
        "Intervals resample groups. Who drew what was rarely drawn at random, so that a difference between levels may "
        "be one between their images.</p>" + html_table(heads, rows, text=(1,))
    )


def _known(found: pd.DataFrame) -> str:
    """The problems, counted by kind; problems.csv has every one."""
    rows = [
        [escape(str(code)), str(len(part)), escape(str(part.iloc[0]["image"])), escape(str(part.iloc[0]["what"])),
         escape(str(part.iloc[0]["remedy"]))]
        for code, part in found.groupby("code", sort=True)
    ]  # fmt: skip
    heads = ("code", "rows", "the first", "what", "remedy")
    return html_table(heads, rows, text=(2, 3, 4)) + "<p class=soft>Every row is in problems.csv.</p>"


def _pictures(job: AgreementJob, manifest: Manifest, task: str, images: pd.DataFrame) -> str:
    measure = job.measures[0]
    worst = images.sort_values([measure, "image"], ascending=[measure not in DISTANCE, True], na_position="first")
    cases = {case.case_id: case for case in manifest.cases}
    shown = list(_drawn(job, manifest, task, [(cases[row["image"]], row[measure]) for row in worst.to_dict("records")]))
    if not shown:
        return "<p class=soft>No picture with two masks: volumes and published pairs are not drawn.</p>"
    return plots_html({"outlines": outlines(shown)})


def _drawn(job: AgreementJob, manifest: Manifest, task: str, cases: Sequence[tuple[Case, float]]) -> Iterator[Drawn]:
    """Up to ``job.pictures`` of the cases that are pictures with two masks, in their order."""
    left = job.pictures
    for case, value in cases:
        if not left:
            return
        if not task or not case.image.lower().endswith(_SUFFIXES):
            continue
        item = annotated(case, manifest, task, label=job.label)
        if item is not None and len(item.masks) > 1:
            left -= 1
            yield _small(item, manifest, case, f"{case.case_id}: {job.measures[0]} {short_number(value)}")


def _small(item: Annotated, manifest: Manifest, case: Case, caption: str) -> Drawn:
    """The picture and its masks at a size for the page."""
    size = item.masks[0].pixels.shape
    factor = min(1.0, _SIDE / max(size))
    shape = max(1, round(size[1] * factor)), max(1, round(size[0] * factor))  # width, height
    photograph = Image.fromarray(_rgb(inside(manifest.root, case.image))).resize(shape, Image.Resampling.BOX)
    masks = {
        mask.annotator: np.asarray(Image.fromarray(mask.pixels).resize(shape, Image.Resampling.NEAREST))
        for mask in item.masks
    }
    return Drawn(np.asarray(photograph), masks, caption)


def _rgb(path: Path) -> np.ndarray:
    """A picture of one channel or three as uint8 [H, W, 3]."""
    try:
        pixels = read_image(path, channels=3)
    except UserError as error:
        if error.code != "E-IMG-COLOUR":
            raise
        pixels = np.repeat(read_image(path, channels=1), 3, axis=0)
    return (pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)
