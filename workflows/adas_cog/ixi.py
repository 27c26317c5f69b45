"""IXI heads as ``participants.csv`` with a DLMUSE parcellation each, merged into regions; age and sex, no scores.

The labels are a network's (DLMUSE), not drawn by hand: what is learnt from them agrees with that network at best.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from medmtl.data.case import Case
from medmtl.io.masks import check_mask
from medmtl.io.nifti import read_nifti
from workflows.adas_cog import cells
from workflows.adas_cog.images import check_volume, place_volume
from workflows.preparation import Place, Remark, Row, file_inside, file_name, read_table

TABLE = "participants.csv"
COLUMNS = frozenset({"subject_id", "t1w", "seg", "site", "age", "sex"})
# MUSE's numbers (Doshi et al. 2016, NeuroImage 127): 100 to 207 are gyri, right and left
REGIONS: Mapping[str, frozenset[int]] = {
    "outside": frozenset({0}),
    "csf": frozenset({1, 46}),
    "ventricles": frozenset({4, 11, 49, 50, 51, 52}),
    "hippocampi": frozenset({31, 32, 47, 48}),  # with the amygdalae
    "deep_grey": frozenset({23, 30, 36, 37, 55, 56, 57, 58, 59, 60, 61, 62, 75, 76}),
    "white_matter": frozenset({69, *range(81, 96)}),
    "cerebellum": frozenset({38, 39, 40, 41, 71, 72, 73}),
    "brainstem": frozenset({35}),
    "cortex": frozenset(range(100, 208)),
}

KNOWN = frozenset().union(*REGIONS.values())


def places(source: Path) -> list[tuple[Place, Row]]:
    return [
        (Place(TABLE, line, file_name(row["subject_id"])), row) for line, row in read_table(source / TABLE, COLUMNS)
    ]


def read_row(source: Path, out: Path, place: Place, row: Row, *, fill_nan: bool = False) -> tuple[Case, list[Remark]]:
    """The case of a head, image and merged mask in place; UserError where a cell, image or mask is wrong."""
    age = cells.number(row["age"], what="age", low=18, high=120)
    nan: Literal["fill", "refuse"] = "fill" if fill_nan else "refuse"
    image = check_volume(read_nifti(file_inside(source, row["t1w"], "image"), nan=nan))
    labels = check_mask(read_nifti(file_inside(source, row["seg"], "segmentation")), image, values=KNOWN, name="seg")
    path, mask = (out / folder / f"{place.case_id}.nii.gz" for folder in ("images", "masks"))
    remarks = [*place_volume(image, path), *place_volume(replace(labels, array=merged(labels.array)), mask)]
    meta = {"age": age, "age_band": cells.age_band(age), "sex": cells.sex(row["sex"])}
    targets = {"regions": mask.relative_to(out).as_posix(), "age": age}
    known = {name: cell for name, cell in targets.items() if cell}
    described = {name: cell for name, cell in meta.items() if cell}
    domain = f"IXI {row['site']}".strip()
    subject = file_name(row["subject_id"])
    return Case(place.case_id, subject, path.relative_to(out).as_posix(), domain, "", known, described), remarks


def merged(labels: np.ndarray) -> np.ndarray:
    """Class indices (uint8, in the order of ``REGIONS``) of a parcellation with MUSE's numbers."""
    table = np.zeros(max(KNOWN) + 1, np.uint8)
    for index, numbers in enumerate(REGIONS.values()):
        table[list(numbers)] = index
    return table[labels]
