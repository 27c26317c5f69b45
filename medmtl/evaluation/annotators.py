"""What the annotators of a manifest drew, and how far pairs of them agree: one table, from masks or as published."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medmtl.agreement.masks import Annotated, Mask, Pixels, foreground
from medmtl.agreement.pairs import MEASURES, OVERLAP, PAIR_COLUMNS
from medmtl.data.case import Case, Manifest
from medmtl.errors import UserError
from medmtl.files import inside
from medmtl.io.masks import check_mask
from medmtl.io.nifti import read_nifti
from medmtl.io.raster import read_mask

_VOLUMES = (".nii", ".nii.gz")
PROBLEM_COLUMNS = ("image", "code", "what", "remedy")


def annotators_of(manifest: Manifest, task: str) -> tuple[str, tuple[str, ...]]:
    """The task and its annotators, from the columns ``target.<task>.<annotator>``; "" is the only task that has any.

    Raises ``E-AGR-TASK`` where the manifest has none of that name, or several and none is asked for.
    """
    found: dict[str, list[str]] = {}
    for column in manifest.targets:
        name, _, annotator = column.partition(".")
        if annotator:
            found.setdefault(name, []).append(annotator)
    if not task and len(found) == 1:
        task = next(iter(found))
    if task in found:
        return task, tuple(found[task])
    what = f"no column target.{task}.<annotator>" if task else f"{len(found) or 'no'} tasks have several annotators"
    raise UserError(
        "E-AGR-TASK",
        what,
        f"give --task as one of {', '.join(sorted(found))}"
        if found
        else "write each annotator's masks in a column target.<task>.<annotator>, or give --pairs",
        where=manifest.name,
    )


def annotated(case: Case, manifest: Manifest, task: str, *, label: int | None = None) -> Annotated | None:
    """The masks of one case; None where nobody drew it.

    ``label`` is the class that counts as foreground; without it a mask must be two-valued. NIfTI masks must lie where
    their image lies, and give their distances in mm. Raises UserError for masks that cannot be compared.
    """
    cells = {column.partition(".")[2]: cell for column, cell in case.targets.items() if column.startswith(f"{task}.")}
    if not cells:
        return None
    volumes = case.image.lower().endswith(_VOLUMES)
    image = read_nifti(inside(manifest.root, case.image)) if volumes else None
    masks, spacing = [], None
    for annotator, cell in cells.items():
        path = inside(manifest.root, cell)
        if image is None:
            values = read_mask(path)
        else:
            volume = check_mask(read_nifti(path, labels=True), image, name=cell)
            values = volume.array
            spacing = volume.spacing[: values.ndim] if volume.spacing else None
        masks.append(Mask(annotator, _marked(values, label, cell)))
    return Annotated(case.case_id, tuple(masks), case.group, spacing)


def _marked(values: np.ndarray, label: int | None, where: str) -> Pixels:
    return foreground(values, where=where) if label is None else np.asarray(values == label)


def read_pairs(path: Path, manifest: Manifest) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table of pairs as :func:`medmtl.agreement.pairs.pair_table` makes it; ``PROBLEM_COLUMNS`` of its other rows.

    It has ``image`` (a case of the manifest, which gives the group), ``a``, ``b``, any of ``MEASURES``, for distances
    ``unit`` (mm or px) and for traits ``<trait>.a``, ``<trait>.b``. A person paired with himself says nothing.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError("E-AGR-PAIRS", "no readable CSV table", "give the table of pairs", where=path.name) from error
    missing = sorted({"image", "a", "b"} - set(table.columns))
    if missing or not set(MEASURES) & set(table.columns):
        what = f"no column {', '.join(missing)}" if missing else f"none of the columns {', '.join(MEASURES)}"
        raise UserError("E-AGR-PAIRS", what, "name its columns image, a, b, dice", where=path.name)
    groups = {case.case_id: case.group for case in manifest.cases}
    kept, problems = [], []
    for number, row in zip(table.index + 2, table.to_dict("records"), strict=True):
        try:
            kept.append(_pair({str(key): str(cell) for key, cell in row.items()}, groups, f"{path.name} row {number}"))
        except UserError as error:
            problems.append((row["image"], error.code, f"{error.where}: {error.what}", error.remedy))
    return pair_frame(kept), pd.DataFrame(problems, columns=PROBLEM_COLUMNS)


def _pair(row: dict[str, str], groups: dict[str, str], where: str) -> dict[str, object]:
    if row["image"] not in groups:
        raise UserError("E-AGR-IMAGE", "no such case in the manifest", "correct or remove the row", where=where)
    if row["a"] == row["b"]:
        raise UserError("E-AGR-TWICE", "an annotator is paired with himself", "remove the row", where=where)
    values = {name: _value(row.get(name, ""), name, where) for name in MEASURES}
    swapped = row["a"] > row["b"]
    traits = {name: cell for name, cell in row.items() if name.endswith((".a", ".b"))}
    if swapped:
        row["a"], row["b"] = row["b"], row["a"]
        traits = {name[:-1] + ("b" if name.endswith("a") else "a"): cell for name, cell in traits.items()}
    unit = row.get("unit", "") or "px"
    return {"image": row["image"], "group": groups[row["image"]], "a": row["a"], "b": row["b"], **values,
            "empty": 0, "unit": unit, **traits}  # fmt: skip


def _value(cell: str, name: str, where: str) -> float:
    """A cell of a measure; NaN where it is empty."""
    if not cell:
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= (1.0 if name in OVERLAP else float("inf")):
        expected = "0 to 1" if name in OVERLAP else "0 or more"
        raise UserError("E-AGR-VALUE", f"{name} {cell!r}; {expected} was expected", "correct the cell", where=where)
    return value


def pair_frame(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Rows of pairs as a table with the columns and types of a pair table, whether there are any or not."""
    table = pd.DataFrame(list(rows), columns=None if rows else PAIR_COLUMNS)
    return table.astype(dict.fromkeys(MEASURES, float) | {"empty": int})


def with_cases(pairs: pd.DataFrame, manifest: Manifest, names: Sequence[str]) -> pd.DataFrame:
    """The pairs with a column for each of ``names`` that is none of the masks' traits: ``domain`` or ``meta.<name>``.

    Raises ``E-AGR-TRAIT`` for a name that is neither.
    """
    for name in names:
        if name in ("all", "annotator") or f"{name}.a" in pairs.columns:
            continue
        known = dict(_cells(manifest, name))
        if not any(known.values()):
            columns = sorted({"domain", *(column for case in manifest.cases for column in case.meta)})
            raise UserError("E-AGR-TRAIT", f"neither masks nor cases have {name!r}", f"use one of {', '.join(columns)}",
                            where="--by")  # fmt: skip
        pairs = pairs.assign(**{name: [known[image] or "unknown" for image in pairs["image"]]})
    return pairs


def _cells(manifest: Manifest, name: str) -> Iterator[tuple[str, str]]:
    for case in manifest.cases:
        yield case.case_id, case.domain if name == "domain" else case.meta.get(name.removeprefix("meta."), "")
