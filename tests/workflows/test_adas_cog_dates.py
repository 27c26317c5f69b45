"""Dates and screenings of ADNI-like tables: no slip in a date gives an image another visit's labels.

Subject 2 has visits 180 days apart, a score per visit that is its number of months, and images in folders that are
named by a date, so that nothing but the tables' dates says whose they are.
"""

import csv
import datetime
from pathlib import Path

import numpy as np
import pytest

from medmtl.data.case import Case, read_manifest
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume
from workflows.adas_cog import cells
from workflows.adas_cog.prepare import prepare

FIRST = datetime.date(2006, 3, 2)
MONTHS = {"bl": 0, "m06": 6, "m12": 12, "m24": 24}
ADAS, MERGED = "ADAS.csv", "ADNIMERGE.csv"
Tables = dict[str, list[dict[str, str]]]


def day(code: str, later: int = 0) -> str:
    return (FIRST + datetime.timedelta(round(MONTHS[code] * 30.44) + later)).isoformat()


def tables() -> Tables:
    """Both tables of subject 2: the total is the months, MMSE 30 less a point for six of them."""
    merged = [{"RID": "2", "PTID": "011_S_0002", "VISCODE": code, "EXAMDATE": day(code), "AGE": "70",
               "MMSE": str(30 - months // 6)} for code, months in MONTHS.items()]  # fmt: skip
    adas = [{"RID": "2", "VISCODE2": code, "EXAMDATE": day(code), "TOTAL13": str(months)}
            for code, months in MONTHS.items()]  # fmt: skip
    return {MERGED: merged, ADAS: adas}


def row(found: Tables, name: str, code: str) -> dict[str, str]:
    return next(row for row in found[name] if code in (row.get("VISCODE"), row.get("VISCODE2")))


def made(folder: Path, found: Tables, *images: str) -> Path:
    """The tables, and an image in each of the folders below the subject's."""
    for name, rows in found.items():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), restval="")
            writer.writeheader()
            writer.writerows(rows)
    voxels = np.random.default_rng(0).random((8, 8, 8), np.float32)
    for image in images:
        write_nifti(folder / "ADNI" / "011_S_0002" / image / "T1w.nii.gz", Volume(voxels, np.diag([10.0, 10, 10, 1])))
    return folder


class Prepared:
    """What came of a source: its cases by id, and the lines of its report."""

    def __init__(self, source: Path, out: Path, **options) -> None:
        prepare(source, out, **options)
        self.cases: dict[str, Case] = {case.case_id: case for case in read_manifest(out / "manifest.csv").cases}
        with (out / "prepare_report.csv").open(newline="", encoding="utf-8") as stream:
            self.lines = list(csv.DictReader(stream))

    def of(self, table: str, row: int) -> dict[str, str]:
        (line,) = [line for line in self.lines if (line["table"], line["row"]) == (table, str(row))]
        return line

    @property
    def images(self) -> list[dict[str, str]]:
        return [line for line in self.lines if line["table"] == "images"]

    @property
    def suspected(self) -> set[tuple[str, str]]:
        """Rows whose date is not used."""
        return {(line["table"], line["row"]) for line in self.lines if "E-PREP-DATE" in line["reason"]}


def test_dates_that_agree_place_every_image(tmp_path: Path) -> None:
    """Three weeks between examinations, and between these and the image, are a visit still."""
    found = tables()
    row(found, ADAS, "m06")["EXAMDATE"] = day("m06", 21)
    prepared = Prepared(made(tmp_path / "in", found, *(day(code, -20) for code in MONTHS)), tmp_path / "out")
    assert {name: case.targets["adas13"] for name, case in prepared.cases.items()} == {
        f"R0002_m{months:02d}": str(months) for months in MONTHS.values()
    }
    assert {line["reason"] for line in prepared.lines} == {""}


def test_a_date_of_another_visit_in_one_table_gives_no_image_that_visits_labels(tmp_path: Path) -> None:
    """No scan at m06: the one of m24 must not become it. All rows of that date are named, none is refused."""
    found = tables()
    row(found, MERGED, "m06")["EXAMDATE"] = day("m24")
    prepared = Prepared(made(tmp_path / "in", found, day("bl"), day("m24")), tmp_path / "out")
    assert set(prepared.cases) == {"R0002_m00"}
    (line,) = [line for line in prepared.images if line["status"] == "left out"]
    assert "it may be of m06 or m24, of which the tables give no date" in line["reason"]
    assert "name the folder by its visit code" in line["remedy"]
    assert prepared.suspected == {(MERGED, "3"), (MERGED, "5"), (ADAS, "3"), (ADAS, "5")}
    wrong = prepared.of(MERGED, 3)["reason"]
    assert "ADNIMERGE.csv row 5 (R0002_m24)" in wrong and "ADAS.csv row 5 (R0002_m24)" in wrong
    shared = "its date is not used: it is that of another visit too, ADNIMERGE.csv row 3 (R0002_m06) (E-PREP-DATE)"
    assert all(shared in prepared.of(name, 5)["reason"] for name in (MERGED, ADAS))
    assert "this visit's are 548 days apart, ADNIMERGE.csv row 3" in prepared.of(ADAS, 3)["reason"]
    assert not any(line["status"] == "error" for line in prepared.lines)
    targets = prepared.cases["R0002_m00"].targets
    assert (targets["adas13_m6"], targets["adas13_m24"]) == ("6", "24"), "the rows' codes say whose their scores are"


@pytest.mark.parametrize("order", [1, -1])
def test_two_visits_of_one_date_in_one_table_are_both_named(tmp_path: Path, order: int) -> None:
    found = tables()
    del found[ADAS]
    row(found, MERGED, "m12")["EXAMDATE"] = day("m06")
    found[MERGED] = found[MERGED][::order]
    prepared = Prepared(made(tmp_path / "in", found, "bl", "m06", "m12"), tmp_path / "out")
    numbers = {row["VISCODE"]: n for n, row in enumerate(found[MERGED], start=2)}
    assert prepared.suspected == {(MERGED, str(numbers["m06"])), (MERGED, str(numbers["m12"]))}
    assert [prepared.cases[f"R0002_m{m:02d}"].meta["age"] for m in (0, 6, 12)] == ["70.0", "70.5", "71.0"]
    assert prepared.cases["R0002_m12"].targets["mmse"] == "28"


def test_one_date_of_two_visits_across_tables_counts_no_years(tmp_path: Path) -> None:
    found = tables()
    row(found, MERGED, "m06")["EXAMDATE"] = row(found, ADAS, "m24")["EXAMDATE"] = "2012-01-01"
    prepared = Prepared(made(tmp_path / "in", found, "bl", "m06", "m24"), tmp_path / "out")
    assert prepared.suspected == {(MERGED, "3"), (MERGED, "5"), (ADAS, "3"), (ADAS, "5")}
    assert [prepared.cases[f"R0002_m{m:02d}"].meta["age"] for m in (6, 24)] == ["70.5", "72.0"]


@pytest.mark.parametrize(("later", "trusted"), [(60, True), (61, False), (-400, False)])
def test_dates_of_one_visit_that_are_far_apart_are_not_used(tmp_path: Path, later: int, trusted: bool) -> None:
    found = tables()
    row(found, MERGED, "m24")["EXAMDATE"] = day("m24", later)
    prepared = Prepared(made(tmp_path / "in", found, day("bl"), day("m24"), day("m24", later)), tmp_path / "out")
    assert ("R0002_m24" in prepared.cases) == trusted
    assert prepared.suspected == (set() if trusted else {(MERGED, "5"), (ADAS, "5")})
    if not trusted:
        assert f"{abs(later)} days apart, ADAS.csv row 5" in prepared.of(MERGED, 5)["reason"]
        assert [line["status"] for line in prepared.images].count("left out") == 2


@pytest.mark.parametrize(
    ("code", "wrong", "doubtful"),
    [("m12", "2004-02-27", "m12"), ("bl", "2005-03-02", "bl m06 m12 m24"), ("m24", "2012-03-02", "m24")],
)
def test_a_date_that_is_not_where_its_code_lies_is_not_used(
    tmp_path: Path, code: str, wrong: str, doubtful: str
) -> None:
    """The wrong year, in the only table that has dates: what most dates contradict is doubtful, or all of them are."""
    found = tables()
    for each in found[ADAS]:
        del each["EXAMDATE"]
    row(found, MERGED, code)["EXAMDATE"] = wrong
    prepared = Prepared(made(tmp_path / "in", found, "m06", *(day(each) for each in MONTHS)), tmp_path / "out")
    names = list(MONTHS)
    assert prepared.suspected == {(MERGED, str(2 + names.index(each))) for each in doubtful.split()}
    lost = {f"R0002_m{MONTHS[each]:02d}" for each in doubtful.split()} - {"R0002_m06"}
    assert set(prepared.cases) == {f"R0002_m{months:02d}" for months in MONTHS.values()} - lost
    assert {case.targets["adas13"] for case in prepared.cases.values()} == {
        str(int(name[-2:])) for name in prepared.cases
    }


def test_a_visit_without_a_date_keeps_its_image_from_another(tmp_path: Path) -> None:
    """95 days after the baseline, 88 before m06, which has a row and no date: the nearest date is the wrong visit's."""
    found = tables()
    row(found, MERGED, "m06")["EXAMDATE"] = row(found, ADAS, "m06")["EXAMDATE"] = ""
    prepared = Prepared(made(tmp_path / "in", found, "m24", day("bl", 95), day("bl", 30)), tmp_path / "out")
    assert set(prepared.cases) == {"R0002_m00", "R0002_m24"}
    (line,) = [line for line in prepared.images if line["status"] == "left out"]
    assert "it may be of m06" in line["reason"] and "name the folder by its visit code" in line["remedy"]


@pytest.mark.parametrize(("later", "certain"), [(91, False), (88, False), (94, False), (87, True), (96, True)])
def test_an_image_between_two_visits_is_nobodys(tmp_path: Path, later: int, certain: bool) -> None:
    """m06 is 183 days after the baseline: a week's difference between the distances is none."""
    prepared = Prepared(made(tmp_path / "in", tables(), "m24", day("bl", later)), tmp_path / "out")
    if certain:
        assert set(prepared.cases) == {"R0002_m24", "R0002_m00" if later < 91 else "R0002_m06"}
    else:
        (line,) = [line for line in prepared.images if line["status"] == "left out"]
        assert "as near to m" in line["reason"] and "name the folder by its visit code" in line["remedy"]


@pytest.mark.parametrize(("date", "says"), [("m24", ", 0 from m24's"), ("m06", ""), (None, None)])
def test_a_folders_code_counts_and_a_date_that_contradicts_it_is_said(
    tmp_path: Path, date: str | None, says: str | None
) -> None:
    """A folder ``m06`` with the date of m24, or of half a year after m24, when nobody was seen."""
    own = day(date or "m06") if says != "" else day("m24", 183)
    prepared = Prepared(made(tmp_path / "in", tables(), f"m06/{own}_10_11_12.0"), tmp_path / "out")
    assert prepared.cases["R0002_m06"].targets["adas13"] == "6"
    (line,) = prepared.images
    assert line["status"] == "used"
    if says is None:
        assert line["reason"] == ""
    else:
        apart = 548 if says else 731
        expected = f"the folder's visit code counts, but its own date is {apart} days from this visit's{says}"
        assert line["reason"] == expected and line["remedy"]


def test_no_date_is_in_the_report(tmp_path: Path) -> None:
    found = tables()
    row(found, MERGED, "m06")["EXAMDATE"] = day("m24")
    row(found, ADAS, "m12")["EXAMDATE"] = "sometime"
    prepared = Prepared(made(tmp_path / "in", found, day("bl"), f"m06/{day('m24')}_10_11_12.0"), tmp_path / "out")
    assert "its date cannot be read" in prepared.of(ADAS, 4)["reason"]
    assert not any("20" in line["reason"].replace("R0002", "") for line in prepared.lines)


@pytest.mark.parametrize("cell", ["9006-03-02", "0001-01-01", "99990101", "1/1/1066"])
def test_a_year_in_which_nobody_was_scanned_is_no_date(cell: str) -> None:
    assert cells.date(cell) is None


def screening(found: Tables, **changes: str) -> Tables:
    """With a screening six weeks before the baseline: the CDR of a third table, and whatever ``changes`` say."""
    rated = {"RID": "2", "VISCODE": "v01", "VISCODE2": "sc", "EXAMDATE": day("bl", -42), "CDGLOBAL": "0.5", **changes}
    return {**found, "CDR.csv": [rated, {"RID": "2", "VISCODE2": "m06", "CDGLOBAL": "1"}]}


def test_a_screening_gives_what_the_baseline_lacks_and_replaces_nothing(tmp_path: Path) -> None:
    found = screening(tables(), MMSE="11", CDRSB="2.5", PTEDUCAT="16", TOTAL13="40", Q1SCORE="9")
    prepared = Prepared(made(tmp_path / "in", found, "sc", "m06"), tmp_path / "out")
    case = prepared.cases["R0002_m00"]
    assert (case.targets["cdr"], case.targets["cdrsb"], case.targets["mmse"]) == ("0.5", "2.5", "30")
    assert case.targets["adas13"] == "0" and "q1" not in case.targets, "an item of another day's ADAS"
    assert case.meta["education"] == "16" and prepared.cases["R0002_m06"].targets["cdr"] == "1"
    line = prepared.of("CDR.csv", 2)
    assert line["status"] == "used" and line["case_id"] == "R0002_m00"
    assert line["reason"] == "a screening, which gives what the baseline visit lacks: cdr, cdrsb, education"
    assert prepared.suspected == set(), "six weeks before the baseline is where a screening is"


def test_a_screening_that_the_baseline_does_not_need_is_left_out(tmp_path: Path) -> None:
    found = screening(tables())
    row(found, MERGED, "bl")["CDGLOBAL"] = "0"
    prepared = Prepared(made(tmp_path / "in", found, "bl"), tmp_path / "out")
    assert prepared.cases["R0002_m00"].targets["cdr"] == "0"
    line = prepared.of("CDR.csv", 2)
    assert line["status"] == "left out" and line["reason"].startswith("a screening; the baseline visit has all")


@pytest.mark.parametrize("dated", [True, False])
def test_a_screenings_date_is_the_baselines_only_where_that_has_none(tmp_path: Path, dated: bool) -> None:
    """An image 140 days before the baseline is 98 before the screening: too far from the one, not from the other."""
    found = screening(tables())
    if not dated:
        row(found, MERGED, "bl")["EXAMDATE"] = row(found, ADAS, "bl")["EXAMDATE"] = ""
    prepared = Prepared(made(tmp_path / "in", found, "m06", day("bl", -140)), tmp_path / "out")
    assert set(prepared.cases) == ({"R0002_m06"} if dated else {"R0002_m06", "R0002_m00"})
    assert prepared.cases["R0002_m06"].meta["age"] == ("70.5" if dated else "70.6")
    assert ("its date" in prepared.of("CDR.csv", 2)["reason"]) == (not dated)


def test_a_scan_at_the_screening_does_not_contradict_its_folder(tmp_path: Path) -> None:
    found = screening(tables(), EXAMDATE=day("bl", -150))
    prepared = Prepared(made(tmp_path / "in", found, f"sc/{day('bl', -149)}_10_11_12.0"), tmp_path / "out")
    assert prepared.images[0]["status"] == "used" and prepared.images[0]["reason"] == ""


def test_a_screening_alone_is_the_baseline_visit(tmp_path: Path) -> None:
    found = {name: rows for name, rows in screening(tables()).items() if name == "CDR.csv"}
    prepared = Prepared(made(tmp_path / "in", {**found, MERGED: tables()[MERGED][1:]}, "sc"), tmp_path / "out")
    assert prepared.cases["R0002_m00"].targets["cdr"] == "0.5"
