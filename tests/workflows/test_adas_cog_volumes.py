"""Images that are none: what training would refuse is refused while preparing, each with a remedy that exists."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from medmtl.data.synthetic.brain_course import draw_cohort
from medmtl.data.synthetic.brain_source import series_folder, write_brain_source
from medmtl.errors import NothingUsable
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.volume import Volume
from workflows.adas_cog.prepare import main, prepare

VOXELS = np.random.default_rng(0).random((16, 16, 16), np.float32)
PLACE = np.diag([8.0, 8, 8, 1])


def source_of(folder: Path, write: Callable[[Path], object]) -> Path:
    """One subject with one visit; ``write`` makes its image file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ADNIMERGE.csv").write_text("RID,PTID,VISCODE,MMSE\n2,011_S_0002,bl,28\n")
    image = folder / "ADNI" / "011_S_0002" / "bl" / "T1w.nii.gz"
    image.parent.mkdir(parents=True)
    write(image)
    return folder


def image_line(out: Path) -> dict[str, str]:
    with (out / "prepare_report.csv").open(newline="", encoding="utf-8") as stream:
        (line,) = [line for line in csv.DictReader(stream) if line["table"] == "images"]
    return line


def spoiled(share: float) -> np.ndarray:
    """Some of the voxels are NaN."""
    voxels = VOXELS.copy()
    voxels.flat[: max(1, round(share * voxels.size))] = np.nan
    return voxels


def nifti(voxels: np.ndarray, place: np.ndarray = PLACE) -> Callable[[Path], object]:
    return lambda path: write_nifti(path, Volume(voxels, place))


@pytest.mark.parametrize(
    ("write", "code", "remedy"),
    [
        (nifti(VOXELS, np.diag([0.006, 0.006, 0.006, 1])), "E-VOL-SPACING", "correct xyzt_units and the affine"),
        (nifti(VOXELS, np.diag([8.0, 8, 1000, 1])), "E-VOL-SPACING", "correct xyzt_units and the affine"),
        (nifti(VOXELS[:, :, :1]), "E-VOL-DIMENSIONS", "give the whole scan, not a slice"),
        (nifti(VOXELS[:, :5]), "E-VOL-DIMENSIONS", "not a slice, a slab or a localizer"),
        (nifti(spoiled(0)), "E-NII-NAN", "--fill-nan"),
        (lambda path: path.write_bytes(b"hello"), "E-FILE-CONTENT", "restore it from its source"),
    ],
    ids=["metres", "a metre an axis", "one slice", "slab", "nan", "garbage"],
)
def test_what_training_would_refuse_is_refused_with_a_remedy(tmp_path: Path, write, code: str, remedy: str) -> None:
    with pytest.raises(NothingUsable):
        prepare(source_of(tmp_path / "in", write), tmp_path / "out")
    line = image_line(tmp_path / "out")
    assert line["status"] == "error" and f"({code})" in line["reason"] and remedy in line["remedy"]
    assert "T1w" not in line["reason"] and line["case_id"].startswith("R0002")


def test_few_voxels_that_are_no_number_are_filled_where_that_is_asked_for(tmp_path: Path) -> None:
    """As the remedy says: at the command line, up to 0.1 % of them, with the lowest value, and with a remark."""
    app = typer.Typer()
    app.command()(main)
    source = source_of(tmp_path / "in", nifti(spoiled(0)))
    result = CliRunner().invoke(app, [str(source), str(tmp_path / "out"), "--fill-nan"])
    assert result.exit_code == 0, result.stderr
    line = image_line(tmp_path / "out")
    assert line["status"] == "used" and "1 of 4,096 voxels" in line["reason"] and "R-NII-NAN" in line["reason"]
    found = read_nifti(tmp_path / "out" / "images" / "R0002_m00.nii.gz").array
    assert found.flat[0] == VOXELS.flat[1:].min()
    np.testing.assert_array_equal(found.flat[1:], VOXELS.flat[1:])
    source = source_of(tmp_path / "many", nifti(spoiled(0.002)))
    with pytest.raises(NothingUsable):
        prepare(source, tmp_path / "none", fill_nan=True)
    assert "E-NII-NAN" in image_line(tmp_path / "none")["reason"]


def test_oasis_fills_them_too(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", Volume(spoiled(0), PLACE))
    header = "session_id,subject_id,file,sex,age,educ,mmse,cdr"
    (tmp_path / "in" / "participants.csv").write_text(f"{header}\nS1_MR1,S1,a.nii.gz,F,74,2,29,0.5\n")
    with pytest.raises(NothingUsable):
        prepare(tmp_path / "in", tmp_path / "out")
    assert prepare(tmp_path / "in", tmp_path / "out", fill_nan=True).count("used") == 1


def test_garbage_among_dicom_files_is_named_and_notes_are_not(tmp_path: Path) -> None:
    source = write_brain_source(tmp_path / "in", cases=3, groups=3, domains=1, spacing_mm=8.0, head=False)
    subject = draw_cohort(images=3, subjects=3, scanners=1, seed=0)[0]
    folder = series_folder(source, subject, subject.visits[0])
    (folder / "IM9999.dcm").write_bytes(b"\x08\0\x05\0 nothing of the kind" + bytes(400))
    (folder / "notes.txt").write_text("seen")
    empty = folder.parent / "I9"
    empty.mkdir()
    (empty / "notes.txt").write_text("seen")
    prepare(source, tmp_path / "out")
    with (tmp_path / "out" / "prepare_report.csv").open(newline="", encoding="utf-8") as stream:
        lines = [line for line in csv.DictReader(stream) if line["table"] == "images" and line["status"] != "used"]
    assert [line["status"] for line in lines] == ["error", "left out"]
    assert "E-FILE-CONTENT" in lines[0]["reason"] and "ends in .dcm" in lines[0]["reason"]
    assert lines[1]["reason"] == "no image among its files (.txt)" and lines[1]["remedy"]


def test_the_headers_date_contradicts_a_folders_code(tmp_path: Path) -> None:
    """The series of the baseline in a folder ``m06``, which is half a year later."""
    source = write_brain_source(tmp_path / "in", cases=3, groups=3, domains=1, spacing_mm=8.0, head=False)
    subject = draw_cohort(images=3, subjects=3, scanners=1, seed=0)[0]
    assert [visit.code for visit in subject.visits[:2]] == ["bl", "m06"]
    series_folder(source, subject, subject.visits[0]).rename(source / "ADNI" / subject.ptid / "m06")
    prepare(source, tmp_path / "out")
    with (tmp_path / "out" / "prepare_report.csv").open(newline="", encoding="utf-8") as stream:
        (line,) = [
            line for line in csv.DictReader(stream) if line["case_id"] == "R0001_m06" and line["table"] == "images"
        ]
    apart = (subject.visits[1].date - subject.visits[0].date).days
    assert (
        line["status"] == "used" and f"its own date is {apart} days from this visit's, 0 from m00's" in line["reason"]
    )


def test_a_subject_none_of_whose_rows_is_used_is_not_said_to_be_unknown(tmp_path: Path) -> None:
    source = source_of(tmp_path / "in", nifti(VOXELS))
    (source / "ADNIMERGE.csv").write_text("RID,PTID,VISCODE,MMSE\n2,011_S_0002,bl,31\n")
    with pytest.raises(NothingUsable):
        prepare(source, tmp_path / "out")
    line = image_line(tmp_path / "out")
    assert line["reason"] == "no row of its subject is used" and line["case_id"] == "R0002" and line["remedy"]
