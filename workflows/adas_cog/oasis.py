"""OASIS-1 as ``participants.csv`` with skull-stripped volumes: MMSE, CDR and age, one visit each, one scanner."""

from pathlib import Path

from medmtl.data.case import Case
from medmtl.io.nifti import read_nifti
from workflows.adas_cog import cells
from workflows.adas_cog.images import check_volume, place_volume
from workflows.preparation import Place, Remark, Row, file_inside, file_name, read_table

TABLE = "participants.csv"
COLUMNS = frozenset({"session_id", "subject_id", "file", "sex", "age", "educ", "mmse", "cdr"})


def read_row(source: Path, out: Path, place: Place, row: Row, *, fill_nan: bool = False) -> tuple[Case, list[Remark]]:
    """The case of a session, its image in place; UserError where a cell is wrong or the image is not there."""
    age = cells.number(row["age"], what="age", low=18, high=120)
    targets = {
        "mmse": cells.number(row["mmse"], what="mmse", high=30),
        "cdr": cells.cdr(row["cdr"]),
        "age": age,
    }
    path = out / "images" / f"{place.case_id}.nii.gz"
    volume = read_nifti(file_inside(source, row["file"], "image"), nan="fill" if fill_nan else "refuse")
    remarks = list(place_volume(check_volume(volume), path))
    lacking = [name for name, cell in targets.items() if not cell]
    if lacking:
        remarks.append(Remark(f"no {' and no '.join(lacking)}"))
    meta = {
        "age": age,
        "age_band": cells.age_band(age),
        "sex": cells.sex(row["sex"]),
        "education_level": cells.number(row["educ"], what="educ", low=1, high=5),  # OASIS' five levels, not years
        "nwbv": row.get("nwbv", ""),
        "etiv": row.get("etiv", ""),
    }
    known = {name: cell for name, cell in targets.items() if cell}
    described = {name: cell for name, cell in meta.items() if cell}
    image = path.relative_to(out).as_posix()
    return Case(place.case_id, file_name(row["subject_id"]), image, "OASIS-1", "", known, described), remarks


def places(source: Path) -> list[tuple[Place, Row]]:
    return [
        (Place(TABLE, line, file_name(row["session_id"])), row) for line, row in read_table(source / TABLE, COLUMNS)
    ]
