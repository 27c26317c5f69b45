"""ADNI-like trees and OASIS-1 become manifests: the drawn cohort end to end; what is wrong is named with its row."""

import csv
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from laws import refuses
from typer.testing import CliRunner

from medmtl.data.case import Case, Manifest, read_manifest
from medmtl.data.synthetic.brain import case_name, draw_scan, number, scores
from medmtl.data.synthetic.brain_course import Subject, draw_cohort
from medmtl.data.synthetic.brain_scanner import SCANNERS, turned_to
from medmtl.data.synthetic.brain_source import ADAS, MERGED, series_folder, write_brain_source
from medmtl.errors import NOTHING, NothingUsable
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.volume import Volume
from workflows.adas_cog import cells
from workflows.adas_cog.prepare import Layout, main, prepare
from workflows.adas_cog.visits import Domain

OASIS = Path(__file__).parents[3] / "shared" / "data" / "oasis1-mmse"
SIZE = {"cases": 14, "groups": 9, "spacing_mm": 8.0, "head": False}


@pytest.fixture(scope="module")
def cohort() -> tuple[Subject, ...]:
    return draw_cohort(images=SIZE["cases"], subjects=SIZE["groups"], scanners=3, seed=0)


@pytest.fixture(scope="module", params=["dicom", "nifti"])
def drawn(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, write_brain_source(folder, format=request.param, **SIZE)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A small NIfTI tree that tests copy and spoil."""
    return write_brain_source(tmp_path_factory.mktemp("template"), format="nifti", cases=6, groups=3, domains=1,
                              spacing_mm=8.0, head=False)  # fmt: skip


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "source"))


def report_of(out: Path) -> list[dict[str, str]]:
    with (out / "prepare_report.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def by_id(out: Path) -> dict[str, Case]:
    return {case.case_id: case for case in read_manifest(out / "manifest.csv").cases}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def rewrite(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def edit(path: Path, row: int, **cells: str) -> None:
    """Change cells of a line of a table, the header being line 1."""
    rows = table(path)
    rows[row - 2] |= cells
    rewrite(path, rows)


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
            for p in files if p.suffix != ".csv"}  # fmt: skip


def test_the_drawn_cohort_comes_back_whole(drawn, cohort, tmp_path: Path) -> None:
    """Every image with its voxels in their places, every score, every later total, and nothing else."""
    kind, folder = drawn
    report = prepare(folder, tmp_path)
    cases = by_id(tmp_path)
    visits = {case_name(s, v): (s, v) for s in cohort for v in s.visits}
    assert set(cases) == {name for name, (_, visit) in visits.items() if visit.imaged}
    for name, case in cases.items():
        subject, visit = visits[name]
        scanner = SCANNERS[subject.scanner]
        image, _ = draw_scan(subject, visit, seed=0, spacing_mm=8.0, head=False)
        found = read_nifti(tmp_path / case.image)
        expected = image if kind == "dicom" else turned_to(image, scanner.axes)
        np.testing.assert_array_equal(found.array, expected.array)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
        targets = {key: cell for key, cell in scores(visit).items() if cell and key != "age"}
        if visit.months == 0:
            targets |= {f"adas13_m{v.months}": number(v.adas13) for v in subject.visits if v.adas13 is not None}
        targets |= {"cdrsb": number(visit.cdrsb)}
        assert {key: cell for key, cell in case.targets.items() if key != "age"} == targets
        assert float(case.targets["age"]) == pytest.approx(visit.age, abs=0.11)
        assert case.group == f"R{subject.rid:04d}"
        assert case.domain == (scanner.name if kind == "dicom" else f"{scanner.tesla:g}T")
        expected_meta = {"visit": f"m{visit.months:02d}", "sex": "F" if subject.female else "M",
                         "site": str(subject.site), "education": str(subject.education), "diagnosis": visit.diagnosis,
                         "baseline_diagnosis": subject.diagnosis, "field_strength": f"{scanner.tesla:g}T"}  # fmt: skip
        assert {key: case.meta[key] for key in expected_meta} == expected_meta
        assert case.meta.get("baseline_adas13", "") == number(subject.baseline_adas13)
    assert report.count("error") == 0


def test_every_row_and_every_folder_is_accounted_for_once(drawn, cohort, tmp_path: Path) -> None:
    _, folder = drawn
    prepare(folder, tmp_path)
    lines = Counter((line["table"], int(line["row"])) for line in report_of(tmp_path))
    rows = sum(len(subject.visits) for subject in cohort)
    expected = {(name, row) for name in (ADAS, MERGED) for row in range(2, rows + 2)}
    images = [key for key in lines if key[0] == "images"]
    assert set(lines) == expected | {("images", n) for n in range(1, SIZE["cases"] + 1)}
    assert len(images) == SIZE["cases"] and set(lines.values()) == {1}
    left_out = [line for line in report_of(tmp_path) if line["status"] == "left out"]
    assert left_out and all(line["reason"] == "no image of this visit" and line["remedy"] for line in left_out)


def test_a_second_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    before = digests(out), (out / "manifest.csv").read_bytes(), (out / "prepare_report.csv").read_bytes()
    (out / "images" / "R0001_m00.nii.gz").write_bytes(b"cut off")
    prepare(source, out)
    after = digests(out), (out / "manifest.csv").read_bytes(), (out / "prepare_report.csv").read_bytes()
    assert after[1:] == before[1:]
    assert {k: v[0] for k, v in after[0].items()} == {k: v[0] for k, v in before[0].items()}
    changed = [key for key in after[0] if after[0][key][1] != before[0][key][1]]
    assert changed == ["images/R0001_m00.nii.gz"]


@pytest.mark.parametrize(
    ("file", "changes", "code", "says"),
    [
        (ADAS, {"Q1SCORE": "11"}, "E-PREP-SCORE", "q1 = '11' is not a number from 0 to 10"),
        (ADAS, {"Q8SCORE": "-2"}, "E-PREP-SCORE", "q8 = '-2'"),
        (ADAS, {"Q13SCORE": "many"}, "E-PREP-SCORE", "q13 = 'many'"),
        (ADAS, {"TOTAL13": "84"}, "E-PREP-TOTAL", "the total is 84, the 13 items add up to"),
        (ADAS, {"RID": "x"}, "E-PREP-RID", "RID 'x' is no number"),
        (MERGED, {"MMSE": "31"}, "E-PREP-SCORE", "mmse = '31' is not a number from 0 to 30"),
        (MERGED, {"CDGLOBAL": "0.7"}, "E-PREP-SCORE", "CDR = '0.7' is none of 0, 0.5, 1, 2, 3"),
        (MERGED, {"AGE": "7"}, "E-PREP-SCORE", "AGE = '7'"),
        (MERGED, {"SPLIT": "training"}, "E-PREP-SPLIT", "split 'training'"),
    ],
)
def test_a_wrong_cell_is_named_with_its_row_and_the_rest_is_used(
    source: Path, tmp_path: Path, file: str, changes: dict[str, str], code: str, says: str
) -> None:
    whole = {f"Q{n}SCORE": "1" for n in range(1, 14)} | {"TOTAL13": "13", "TOTSCORE": "11"}
    edit(source / ADAS, 2, **whole)
    edit(source / file, 2, **changes)
    prepare(source, tmp_path / "out")
    (line,) = [line for line in report_of(tmp_path / "out") if line["status"] == "error"]
    assert (line["table"], line["row"]) == (file, "2") and code in line["reason"] and says in line["reason"]
    assert line["remedy"]
    assert len(by_id(tmp_path / "out")) == 6


@pytest.mark.parametrize("cell", ["", "-1", "-4", "-4.0", "NA", "NaN"])
def test_missing_codes_are_empty_cells(source: Path, tmp_path: Path, cell: str) -> None:
    edit(source / ADAS, 2, Q4SCORE=cell, TOTAL13=cell)
    edit(source / MERGED, 2, ADAS13=cell, MMSE=cell)
    prepare(source, tmp_path / "out")
    targets = by_id(tmp_path / "out")["R0001_m00"].targets
    assert not {"q4", "adas13", "adas13_m0", "mmse"} & set(targets) and "q5" in targets


def test_two_rows_of_one_visit_are_both_wrong_and_equal_ones_count_once(source: Path, tmp_path: Path) -> None:
    rows = table(source / ADAS)
    rewrite(source / ADAS, [*rows, rows[0], {**rows[1], "Q2SCORE": "4", "TOTAL13": "", "TOTSCORE": ""}])
    prepare(source, tmp_path / "out")
    lines = {(line["table"], line["row"]): line for line in report_of(tmp_path / "out")}
    again, other = str(len(rows) + 2), str(len(rows) + 3)
    assert lines[ADAS, again]["status"] == "left out" and lines[ADAS, again]["reason"] == "repeats row 2"
    assert lines[ADAS, "2"]["status"] == "used"
    for row in ("3", other):
        assert lines[ADAS, row]["status"] == "error" and "E-PREP-TWICE" in lines[ADAS, row]["reason"]


def test_a_subject_in_two_splits_is_refused_and_one_split_is_kept(source: Path, tmp_path: Path) -> None:
    rows = table(source / MERGED)
    for n, row in enumerate(rows):
        row["SPLIT"] = {"1": "train" if n else "test", "2": "val", "3": "test"}[row["RID"]]
    rewrite(source / MERGED, rows)
    prepare(source, tmp_path / "out")
    wrong = [line for line in report_of(tmp_path / "out") if line["status"] == "error"]
    assert wrong and all("the subject is in test and train (E-PREP-SPLIT)" in line["reason"] for line in wrong)
    assert {line["case_id"][:5] for line in wrong} == {"R0001"}
    images = [line for line in wrong if line["table"] == "images"]
    assert images and all(line["remedy"] == "give each subject one split" for line in images)
    assert {case.group: case.split for case in by_id(tmp_path / "out").values()} == {"R0002": "val", "R0003": "test"}


def test_where_tables_differ_the_one_with_the_items_counts_and_it_is_said(source: Path, tmp_path: Path) -> None:
    edit(source / ADAS, 2, **{f"Q{n}SCORE": "1" for n in range(1, 14)}, TOTAL13="13", TOTSCORE="11")
    edit(source / MERGED, 2, ADAS13="20")
    prepare(source, tmp_path / "out")
    assert by_id(tmp_path / "out")["R0001_m00"].targets["adas13"] == "13"
    (line,) = [li for li in report_of(tmp_path / "out") if (li["table"], li["row"]) == (MERGED, "2")]
    assert line["status"] == "used" and f"adas13 = 20 is not used: {ADAS} has 13" in line["reason"]


def test_other_names_of_columns(source: Path, tmp_path: Path) -> None:
    """ADNI 1: Q1 to Q12 and Q14, TOTAL11 and TOTALMOD, VISCODE alone, in small letters too."""
    names = {**{f"Q{n}SCORE": f"q{n}" for n in range(1, 13)}, "Q13SCORE": "Q14", "TOTSCORE": "TOTAL11",
             "TOTAL13": "TotalMod", "RID": "RID", "EXAMDATE": "EXAMDATE", "VISCODE": "VISCODE"}  # fmt: skip
    prepare(source, tmp_path / "before")
    rewrite(source / ADAS, [{names[k]: v for k, v in row.items() if k in names} for row in table(source / ADAS)])
    prepare(source, tmp_path / "after")
    assert (tmp_path / "after" / "manifest.csv").read_bytes() == (tmp_path / "before" / "manifest.csv").read_bytes()


def test_visits_without_a_month_and_tables_that_are_none(source: Path, tmp_path: Path) -> None:
    rows = table(source / MERGED)
    rewrite(source / MERGED, [*rows, {**rows[0], "VISCODE": "uns1", "EXAMDATE": ""}, {**rows[0], "VISCODE": "sc"}])
    (source / "notes.csv").write_text("a,b\n1,2\n")
    prepare(source, tmp_path / "out")
    lines = {line["row"]: line for line in report_of(tmp_path / "out") if line["table"] == MERGED}
    assert "names no month" in lines[str(len(rows) + 2)]["reason"]
    assert "screening" in lines[str(len(rows) + 3)]["reason"]
    assert not any(line["table"] == "notes.csv" for line in report_of(tmp_path / "out"))


def test_an_image_without_a_row_and_a_subject_that_no_table_knows(source: Path, tmp_path: Path) -> None:
    known = next((source / "ADNI").iterdir())
    shutil.copytree(known / "bl", known / "m36")
    shutil.copytree(known, source / "ADNI" / "099_S_9999")
    prepare(source, tmp_path / "out")
    case = by_id(tmp_path / "out")[f"R{int(known.name[-4:]):04d}_m36"]
    assert list(case.targets) == ["age"]
    lines = [line for line in report_of(tmp_path / "out") if line["table"] == "images"]
    (remark,) = [line for line in lines if line["case_id"] == case.case_id]
    assert remark["status"] == "used" and "no row of a table for this visit" in remark["reason"]
    unknown = [line for line in lines if line["reason"].startswith("no folder above it names a subject")]
    assert len(unknown) == len(list((source / "ADNI" / "099_S_9999").iterdir()))
    assert not any("9999" in cell for line in lines for cell in line.values()), "a name of a folder is in the report"


def test_an_image_with_no_label_at_all_is_left_out(source: Path, tmp_path: Path) -> None:
    rows = [{"RID": row["RID"], "VISCODE": row["VISCODE"], "MMSE": row["MMSE"] if row["RID"] != "1" else "-1"}
            for row in table(source / MERGED)]  # fmt: skip
    rewrite(source / MERGED, rows)
    rewrite(source / ADAS, [row for row in table(source / ADAS) if row["RID"] != "1"])
    prepare(source, tmp_path / "out")
    lines = [line for line in report_of(tmp_path / "out") if line["table"] == "images" and "R0001" in line["case_id"]]
    assert lines and all(line["reason"] == "no label at all" for line in lines)


def test_damaged_and_duplicate_images(source: Path, tmp_path: Path) -> None:
    """The largest readable image of a visit is taken; the others have a line each, and a remedy."""
    visit = next((source / "ADNI").glob("*_0001")) / "bl"
    good = read_nifti(visit / "T1w.nii.gz")
    (visit / "0_cut.nii.gz").write_bytes((visit / "T1w.nii.gz").read_bytes()[:2000])
    write_nifti(visit / "A_small.nii.gz", Volume(good.array[::2], good.affine))
    write_nifti(visit / "0_time.nii.gz", Volume(np.stack([good.array] * 2, -1), good.affine, time_step_s=2.0))
    (visit / "notes.txt").write_text("seen")
    (visit / "empty.nii").touch()
    prepare(source, tmp_path / "out")
    lines = [
        line for line in report_of(tmp_path / "out") if line["table"] == "images" and line["case_id"] == "R0001_m00"
    ]
    reasons = sorted((line["status"], line["reason"]) for line in lines)
    assert len(reasons) == 5
    assert sum(status == "used" for status, _ in reasons) == 1
    for part in ("E-FILE-EMPTY", "E-NII-TRUNCATED", "E-VOL-DIMENSIONS"):
        assert any(status == "error" and part in reason for status, reason in reasons), (part, reasons)
    assert any(reason == "another image of this visit is used" for _, reason in reasons)
    np.testing.assert_array_equal(read_nifti(tmp_path / "out" / "images" / "R0001_m00.nii.gz").array, good.array)


def test_a_refused_series_and_a_localizer_are_rows_and_the_visit_is_matched_by_date(tmp_path: Path, cohort) -> None:
    source = write_brain_source(tmp_path / "source", cases=4, groups=3, domains=1, spacing_mm=8.0, head=False)
    subjects = draw_cohort(images=4, subjects=3, scanners=1, seed=0)
    first, second = (series_folder(source, subject, subject.visits[0]) for subject in subjects[:2])
    (first / "IM0005.dcm").unlink()  # a gap
    for path in sorted(second.iterdir())[5:]:
        path.unlink()
    moved = subjects[2].visits[0].date.replace(year=2001).isoformat()
    folder = series_folder(source, subjects[2], subjects[2].visits[0])
    folder.parent.rename(folder.parent.with_name(f"{moved}_10_11_12.0"))
    prepare(source, tmp_path / "out")
    lines = [line for line in report_of(tmp_path / "out") if line["table"] == "images"]
    reasons = {line["reason"]: line for line in lines}
    gap = next(line for reason, line in reasons.items() if "E-DCM-GAP" in reason)
    assert gap["status"] == "error" and gap["remedy"]
    assert any("a series of 5 slices that is no volume of the head" in reason for reason in reasons)
    assert any("no visit within 120 days" in reason for reason in reasons)
    names = {name for subject in subjects for name in (subject.ptid, f"Subject{subject.rid}")}
    assert not any(name in cell for line in lines for cell in line.values() for name in names)


def test_dates_count_where_no_folder_names_the_visit(tmp_path: Path) -> None:
    """The study date of the headers, within the days that are allowed."""
    source = write_brain_source(tmp_path / "source", cases=3, groups=3, domains=1, spacing_mm=8.0, head=False)
    for folder in (source / "ADNI").iterdir():
        (series,) = folder.glob("MPRAGE/*/*")
        series.rename(folder / "scan")
        shutil.rmtree(folder / "MPRAGE")
    prepare(source, tmp_path / "out", within_days=0)
    assert set(by_id(tmp_path / "out")) == {"R0001_m00", "R0002_m00", "R0003_m00"}


@pytest.mark.parametrize(("domain", "found"), [(Domain.FIELD, {"1.5T"}), (Domain.SITE, {"site 10"})])
def test_the_domain_is_what_is_asked_for(source: Path, tmp_path: Path, domain: Domain, found: set[str]) -> None:
    prepare(source, tmp_path / "out", domain=domain)
    assert {case.domain for case in by_id(tmp_path / "out").values()} == found


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    refuses("E-PREP-SOURCE", lambda: prepare(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "a.csv").write_text("image,patient\n")
    refuses("E-PREP-SOURCE", lambda: prepare(tmp_path, tmp_path / "out"), says="participants.csv")
    refuses("E-PREP-SOURCE", lambda: prepare(tmp_path, tmp_path / "out", layout=Layout.OASIS))
    (tmp_path / "t.csv").write_text("RID,VISCODE,MMSE\n1,bl,20\n")
    refuses("E-PREP-NONE", lambda: prepare(tmp_path, tmp_path / "out"), kind=NothingUsable)
    assert report_of(tmp_path / "out")[0]["reason"] == "no image of this visit"


def test_the_command_line_ends_with_its_code(source: Path, tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(source), str(tmp_path / "out")])
    assert result.exit_code == 0 and "rows are used" in result.stderr
    shutil.rmtree(source / "ADNI")
    result = CliRunner().invoke(app, [str(source), str(tmp_path / "none")])
    assert result.exit_code == NOTHING and "E-PREP-NONE" in result.stderr


@pytest.mark.parametrize(
    ("read", "cell", "expected"),
    [
        (cells.months_of, "bl", 0), (cells.months_of, "m06", 6), (cells.months_of, "ses-M12", 12),
        (cells.months_of, "sc", None), (cells.months_of, "v06", None), (cells.diagnosis, "MCI to Dementia", "AD"),
        (cells.diagnosis, "EMCI", "MCI"), (cells.diagnosis, "SMC", "CN"), (cells.diagnosis, "?", ""),
        (cells.field_strength, "1.5 Tesla MRI", "1.5T"), (cells.field_strength, "3.0", "3T"),
        (cells.field_strength, "unknown", ""), (cells.sex, "Female", "F"), (cells.sex, "1", "M"),
    ],
)  # fmt: skip
def test_cells_are_read_as_they_are_written(read, cell: str, expected) -> None:
    assert read(cell) == expected


@pytest.mark.parametrize("cell", ["2006-03-02", "2006-03-02_10_11_12.0", "3/2/2006", "20060302"])
def test_dates_in_every_form(cell: str) -> None:
    assert cells.date(cell).isoformat() == "2006-03-02"
    assert cells.date("2006-13-45") is None and cells.date("m06") is None


def participants(folder: Path, rows: list[str]) -> Path:
    rng = np.random.default_rng(0)
    write_nifti(folder / "t1" / "a.nii.gz", Volume(rng.random((8, 8, 8), np.float32), np.diag([-10.0, 10, 10, 1])))
    header = "session_id,subject_id,file,sex,age,educ,mmse,cdr,nwbv,etiv"
    (folder / "participants.csv").write_text("\n".join([header, *rows, ""]))
    return folder


def test_oasis_rows(tmp_path: Path) -> None:
    rows = ["S1_MR1,S1,t1/a.nii.gz,F,74,2,29,0.5,0.74,1344", "S2_MR1,S2,t1/a.nii.gz,M,23,,,,0.85,1500",
            "S3_MR1,S3,t1/a.nii.gz,M,60,3,31,0,0.8,1500", "S4_MR1,S4,t1/b.nii.gz,M,60,3,30,0,0.8,1500",
            "S1_MR1,S1,t1/a.nii.gz,F,74,2,29,0.5,0.74,1344"]  # fmt: skip
    prepare(participants(tmp_path / "in", rows), tmp_path / "out")
    cases = by_id(tmp_path / "out")
    assert dict(cases["S1_MR1"].targets) == {"mmse": "29", "cdr": "0.5", "age": "74"}
    assert dict(cases["S2_MR1"].targets) == {"age": "23"} and "education_level" not in cases["S2_MR1"].meta
    assert cases["S1_MR1"].meta["education_level"] == "2" and cases["S1_MR1"].domain == "OASIS-1"
    lines = report_of(tmp_path / "out")
    assert [line["status"] for line in lines] == ["used", "used", "error", "error", "error"]
    assert lines[1]["reason"] == "no mmse and no cdr"
    for line, code in zip(lines[2:], ("E-PREP-SCORE", "E-PREP-FILE", "E-PREP-TWICE"), strict=True):
        assert code in line["reason"] and line["remedy"]


@pytest.mark.slow
@pytest.mark.skipif(not OASIS.is_dir(), reason="OASIS-1 is not beside the checkout (../shared/data/oasis1-mmse)")
def test_oasis_1_itself(tmp_path: Path) -> None:
    report = prepare(OASIS, tmp_path)
    assert (report.count("used"), report.count("error"), report.count("left out")) == (213, 0, 0)
    manifest: Manifest = read_manifest(tmp_path / "manifest.csv")
    assert len({case.group for case in manifest.cases}) == 213
    assert Counter("mmse" in case.targets for case in manifest.cases) == {True: 201, False: 12}
    assert {case.targets["cdr"] for case in manifest.cases if "cdr" in case.targets} == {"0", "0.5", "1", "2"}
    source = read_nifti(OASIS / "t1w_3mm" / "OAS1_0001_MR1.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "images/OAS1_0001_MR1.nii.gz").array, source.array)
