"""``medmtl ingest`` end to end: every file accounted for, nothing about anybody, and the same bytes however it went."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from medmtl.data.case import read_manifest
from medmtl.data.synthetic.dicom import flaws, write_phantom
from medmtl.errors import EnvironmentFailure, SafetyRefusal, UserError
from medmtl.ingest import pipeline, space
from medmtl.ingest.pipeline import Job, LabelRule, ingest
from medmtl.io.deidentify.verify import verify
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume

PHANTOMS = (
    "axial",
    "gap-middle",
    "two-echoes",
    "screenshot",
    "radiograph",
    "monochrome1",
    "not-images",
    "truncated-pixels",
)
SECRET_FOLDER = "DOE^JANE 0042"


def _volume(seed, *, shape=(12, 11, 10)):
    array = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    return Volume(array, np.diag([1.0, 1.5, 2.0, 1.0]))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """DICOM, NIfTI and pictures of several people, and everything else that lies around."""
    root = tmp_path_factory.mktemp("data") / "source"
    identifiers = []
    for kind in PHANTOMS:
        truth = write_phantom(root / SECRET_FOLDER / kind, kind)
        identifiers += truth.identifiers
    for subject in ("sub-01", "sub-02"):
        (root / subject).mkdir()
        write_nifti(root / subject / f"{subject}_T1w.nii.gz", _volume(int(subject[-1])))
        mask = _volume(9).array > 0
        write_nifti(root / subject / f"{subject}_lesion.nii.gz", Volume(mask, np.diag([1.0, 1.5, 2.0, 1.0])))
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x013B] = "DOE^JANE"
    Image.fromarray(pixels).save(root / "sub-01" / "photo JANE.jpg", exif=exif)
    pages = [Image.fromarray(pixels[..., n]) for n in range(2)]
    pages[0].save(root / "sub-02" / "two.tif", save_all=True, append_images=pages[1:])
    (root / "flat.nii").write_bytes(b"")
    write_png(root / "flat.png", np.full((8, 8), 7, np.uint8))
    (root / "line\nbreak é.txt").write_text("x")
    (root / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"no picture")
    (root / "out").symlink_to("/etc/hostname")
    os.mkfifo(root / "fifo")
    root.joinpath(*["deep"] * 60).mkdir(parents=True)
    write_png(root.joinpath(*["deep"] * 60, "end.png"), pixels)
    return root, tuple(dict.fromkeys(identifiers))


MASKS = {"lesion": r"_T1w\.nii\.gz -> _lesion.nii.gz"}


def _job(root, out, **options):
    return Job(root, out, **{"jobs": 2, "masks": MASKS, "key": out.parent / "key", **options})


@pytest.fixture(scope="module")
def study(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    return ingest(_job(source[0], out)), out


def _files(out, *, but=("cases.jsonl", ".lock")):
    """Content by path, without the ledger (it holds seconds)."""
    paths = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in but)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def _rows(out):
    with (out.with_name(f"{out.name}.private") / "files.csv").open(errors="surrogateescape", newline="") as stream:
        return {row["path"]: row for row in csv.DictReader(stream)}


def test_every_file_is_in_the_report_exactly_once(source, study):
    summary, out = study
    root, _ = source
    there = set()
    for folder, _, names in os.walk(root):
        there |= {os.path.relpath(os.path.join(folder, name), root) for name in names}  # noqa: PTH118
    rows = _rows(out)
    assert set(rows) == there and sum(summary.files.values()) == len(there)
    report = json.loads((out / "ingest_report.json").read_text())
    assert len(report["files"]) == len({row["file"] for row in report["files"]}) == len(there)
    with (out / "ingest_report.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == report["files"]


@pytest.mark.parametrize(
    ("start", "status", "code"),
    [
        (f"{SECRET_FOLDER}/axial/", "accepted", ""),
        (f"{SECRET_FOLDER}/gap-middle/", "refused", "E-DCM-GAP"),
        (f"{SECRET_FOLDER}/screenshot/", "refused", "E-DEID-BURNED"),
        (f"{SECRET_FOLDER}/monochrome1/", "repaired", "R-DCM-INVERTED"),
        ("sub-01/sub-01_T1w", "accepted", ""),
        ("sub-01/sub-01_lesion", "accepted", ""),
        ("sub-01/photo", "repaired", "R-RAS-METADATA"),
        ("sub-02/two", "repaired", "R-RAS-PNG"),
        ("flat.nii", "refused", "E-FILE-EMPTY"),
        ("flat.png", "refused", "E-ING-EMPTY"),
        ("\udcff\udcfe", "refused", "E-FILE-CONTENT"),
        ("line", "ignored", "I-FILE-OTHER"),
        ("out", "refused", "E-SEC-PATH"),
        ("fifo", "ignored", "I-FILE-SPECIAL"),
        ("deep/", "accepted", ""),
    ],
)
def test_what_becomes_of_a_file(study, start, status, code):
    rows = [row for path, row in _rows(study[1]).items() if path.startswith(start)]
    assert rows and {(row["status"], row["code"]) for row in rows} == {(status, code)}
    assert all(bool(row["case"]) == (status in ("accepted", "repaired")) for row in rows)
    assert all(row["remedy"] for row in rows if code)


def test_the_manifest_is_one_that_training_reads(study):
    summary, out = study
    manifest = read_manifest(out / "manifest.csv")
    report = json.loads((out / "ingest_report.json").read_text())
    assert len(manifest.cases) == summary.volumes["ok"] == len(report["cases"]) and summary.exit_code == 3
    by_source = {}
    for case in manifest.cases:
        by_source.setdefault(case.meta["source"], []).append(case)
    assert {case.domain for case in by_source["dicom"]} == {"Phantom Works Analytic 1"}
    assert all(case.targets["lesion"].startswith("masks/lesion/") for case in by_source["nifti"])
    assert {case.image.rpartition(".")[2] for case in by_source["raster"]} == {"jpg", "png"}
    assert len({case.group for case in by_source["nifti"]}) == 2


def _case_of(out, start):
    (case,) = {row["case"] for path, row in _rows(out).items() if path.startswith(start)}
    return next(c for c in read_manifest(out / "manifest.csv").cases if c.case_id == case)


@pytest.mark.parametrize("kind", ["axial", "monochrome1"])
def test_a_volume_is_where_and_what_it_was(study, tmp_path, kind):
    (want,) = write_phantom(tmp_path / kind, kind).volumes
    image = nibabel.load(study[1] / _case_of(study[1], f"{SECRET_FOLDER}/{kind}/").image)
    assert flaws(want, np.asanyarray(image.dataobj), image.affine) == ""


def test_two_echoes_are_two_cases_of_one_group(study):
    cases = {row["case"] for path, row in _rows(study[1]).items() if "/two-echoes/" in path}
    found = [case for case in read_manifest(study[1] / "manifest.csv").cases if case.case_id in cases]
    assert len(found) == 2 and len({case.group for case in found}) == 1
    times = {case.meta["split.EchoTime"] for case in found}
    sidecars = [json.loads((study[1] / "images" / f"{case.case_id}.json").read_text()) for case in found]
    assert {f"{1000 * sidecar['EchoTime']:g}" for sidecar in sidecars} == times and len(times) == 2


def test_a_radiograph_is_a_picture_and_not_a_volume(study, tmp_path):
    (want,) = write_phantom(tmp_path / "radiograph", "radiograph").volumes
    case = _case_of(study[1], f"{SECRET_FOLDER}/radiograph/")
    stored = np.asarray(Image.open(study[1] / case.image))
    np.testing.assert_array_equal(stored, want.voxels()[:, ::-1, 0].T)  # first row on top
    assert "orientation" not in case.meta


def test_a_photograph_keeps_its_pixels(source, study):
    original = np.asarray(Image.open(source[0] / "sub-01" / "photo JANE.jpg"))
    np.testing.assert_array_equal(np.asarray(Image.open(study[1] / _case_of(study[1], "sub-01/photo").image)), original)


def test_nothing_that_identifies_is_in_the_study(source, study):
    _, identifiers = source
    words = {word for word in (*identifiers, SECRET_FOLDER, "JANE", "DOE^", "sub-01", "photo") if len(word) > 3}
    assert len(words) > 20
    for name, content in _files(study[1], but=()).items():
        plain = gzip.decompress(content) if name.endswith(".gz") else content
        found = [word for word in words if word.encode() in plain or word.upper().encode() in plain or word in name]
        assert not found, f"{name}: {found}"


def test_the_verification_finds_nothing_and_can_find_something(source, study, tmp_path):
    """``medmtl deidentify --verify`` knows a study that ingest made."""
    root, _ = source
    ingest(Job(root / SECRET_FOLDER / "axial", tmp_path / "out", jobs=1))
    assert verify(tmp_path / "out").clean
    (tmp_path / "out" / "notes.txt").write_text(f"seen: {_patient_id(tmp_path)}")
    assert not verify(tmp_path / "out").clean


def _patient_id(folder):
    with (folder / "out.private" / "crosswalk.csv").open(newline="") as stream:
        return next(csv.DictReader(stream))["patient_id"]


def test_the_private_folder_is_for_its_owner(study):
    private = study[1].with_name("out.private")
    assert private.stat().st_mode & 0o077 == 0
    tables = {"index.jsonl", "files.csv", "crosswalk.csv", "log.txt"}
    assert {path.name for path in private.iterdir()} == {*tables, "study.json", ".lock"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in private.iterdir())


def test_the_report_opens_without_a_network(study):
    page = (study[1] / "ingest_report.html").read_text()
    assert "default-src 'none'" in page and "E-DCM-GAP" in page and page.count("<figure>") == study[0].volumes["ok"]
    assert not any(mark in page for mark in ("http://", "https://", "<script"))


def test_a_second_run_reads_nothing_and_ends_with_the_same_bytes(source, study):
    summary, out = study
    before = _files(out, but=())
    times = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    again = ingest(_job(source[0], out))
    assert (again.read, again.resumed) == (0, summary.volumes["ok"])
    assert {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()} == times
    assert _files(out, but=()) == before


def test_another_place_another_order_and_another_number_of_processes_give_the_same_manifest(source, study, tmp_path):
    """Files of a copy come in another order from the system, and their times are the same."""
    copy = tmp_path / "copy"
    names = sorted((source[0] / "sub-01").iterdir(), reverse=True)
    (copy / "sub-01").mkdir(parents=True)
    for path in names:
        shutil.copy2(path, copy / "sub-01")
    shutil.copy(study[1].parent / "key", tmp_path / "key")
    ingest(_job(copy, tmp_path / "out", jobs=1))
    whole = {case.case_id: case for case in read_manifest(study[1] / "manifest.csv").cases}
    for case in read_manifest(tmp_path / "out" / "manifest.csv").cases:
        assert (case.group, case.image, case.meta) == (
            whole[case.case_id].group, whole[case.case_id].image, whole[case.case_id].meta,
        )  # fmt: skip
        assert (tmp_path / "out" / case.image).read_bytes() == (study[1] / case.image).read_bytes()


def _small(tmp_path, count=4):
    source = tmp_path / "small"
    for n in range(count):
        (source / f"sub-{n:02d}").mkdir(parents=True)
        write_nifti(source / f"sub-{n:02d}" / "scan.nii.gz", _volume(n))
    return source


def test_one_changed_file_is_made_again_and_no_other(tmp_path):
    source = _small(tmp_path)
    job = Job(source, tmp_path / "out", jobs=1)
    ingest(job)
    write_nifti(source / "sub-01" / "scan.nii.gz", _volume(77))
    again = ingest(job)
    assert (again.read, again.resumed, again.volumes["ok"]) == (1, 3, 4)


def test_what_a_power_cut_emptied_is_made_again(tmp_path):
    source = _small(tmp_path, count=3)
    job = Job(source, tmp_path / "out", jobs=1)
    ingest(job)
    whole = _files(job.out)
    sidecars = sorted((job.out / "images").glob("*.json"))
    sidecars[0].write_bytes(b"")  # sidecars and thumbnails are not synced
    next((job.out / "thumbnails").glob(f"{sidecars[1].stem}*")).unlink()
    assert ingest(job).resumed == 1
    assert _files(job.out) == whole


def test_a_case_that_left_the_source_leaves_the_manifest(tmp_path):
    source = _small(tmp_path)
    job = Job(source, tmp_path / "out", jobs=1)
    ingest(job)
    shutil.rmtree(source / "sub-01")
    assert ingest(job).volumes["ok"] == 3
    assert len(read_manifest(tmp_path / "out" / "manifest.csv").cases) == 3


def test_labels_domains_and_groups(tmp_path):
    source = _small(tmp_path)
    (tmp_path / "labels.csv").write_text("subject;grade;age\nsub-00;1;50\nsub-01;2;60\nsub-09;3;70\n")
    rule = LabelRule(tmp_path / "labels.csv", "subject", "{folder:1}", ("grade",))
    job = Job(source, tmp_path / "out", jobs=1, labels=rule, domain="Leeds", keep_names=True)
    summary = ingest(job)
    manifest = read_manifest(tmp_path / "out" / "manifest.csv")
    assert {case.case_id: case.targets.get("grade") for case in manifest.cases} == {
        "sub-00_scan": "1", "sub-01_scan": "2", "sub-02_scan": None, "sub-03_scan": None,
    }  # fmt: skip
    assert manifest.targets == ("grade",) and manifest.domains == ("Leeds",)
    assert {case.group for case in manifest.cases} == {"sub-00", "sub-01", "sub-02", "sub-03"}
    assert [text.split()[0] for text in summary.warnings] == ["W-ING-LABEL-MISSING", "W-ING-LABEL-UNUSED"]
    assert summary.exit_code == 0
    none = LabelRule(tmp_path / "labels.csv", "subject", "{stem}", ("grade",))
    assert ingest(Job(source, tmp_path / "out", jobs=1, labels=none, keep_names=True)).exit_code == 3


def test_a_mask_that_does_not_fit_refuses_its_case(tmp_path):
    source = _small(tmp_path, 1)
    wrong = Volume((_volume(5).array > 0)[:, :, 1:], np.diag([1.0, 1.5, 2.0, 1.0]))
    write_nifti(source / "sub-00" / "mask.nii.gz", wrong)
    masks = {"lesion": r"scan\.nii -> mask.nii"}
    summary = ingest(Job(source, tmp_path / "out", jobs=1, masks=masks))
    assert summary.codes == {"E-MASK-SHAPE": 2} and summary.exit_code == 4
    assert not list((tmp_path / "out").glob("images/*.nii.gz"))


def test_burned_in_images_need_permission(tmp_path):
    write_phantom(tmp_path / "source", "screenshot")
    job = Job(tmp_path / "source", tmp_path / "out", jobs=1)
    quarantined, allowed = ingest(job), ingest(Job(**{**vars(job), "allow_burned_in": True}))
    assert (quarantined.exit_code, allowed.exit_code) == (4, 0)
    assert list((tmp_path / "out" / "images").iterdir())
    assert ingest(job).exit_code == 4 and not list((tmp_path / "out" / "images").iterdir())


def test_nan_is_refused_or_filled_with_a_note(tmp_path):
    array = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    array[0, 0, :3] = np.nan
    write_nifti(tmp_path / "source" / "a.nii.gz", Volume(array, np.eye(4)))
    refused = ingest(Job(tmp_path / "source", tmp_path / "out", jobs=1))
    filled = ingest(Job(tmp_path / "source", tmp_path / "out", jobs=1, fill_nan=True))
    assert (refused.codes, filled.codes) == ({"E-NII-NAN": 1}, {"R-NII-NAN": 1})


def test_a_dry_run_makes_nothing_but_the_report(tmp_path):
    source = _small(tmp_path)
    summary = ingest(Job(source, tmp_path / "out", jobs=1, dry_run=True))
    assert summary.files["accepted"] == 4 and set(_files(tmp_path / "out")) == {
        ".study.json", "ingest_report.csv", "ingest_report.html", "ingest_report.json",
    }  # fmt: skip
    real = ingest(Job(source, tmp_path / "out", jobs=1))
    assert (real.read, real.volumes["ok"]) == (0, 4)


@pytest.mark.parametrize(
    ("options", "failed", "skipped"),
    [({}, 3, 0), ({"fail_fast": True}, 1, 4), ({"max_failures": "1"}, 2, 3), ({"max_failures": "20%"}, 2, 3)],
)
def test_failures_stop_the_job_where_asked(tmp_path, options, failed, skipped):
    source = _small(tmp_path, 2)
    for n in range(3):
        constant = Volume(np.zeros((40, 40, 40 + n), np.int16), np.eye(4))
        noise = np.random.default_rng(n).bytes(4096)
        path = write_nifti(source / f"constant{n}.nii", constant)
        path.write_bytes(path.read_bytes() + noise)  # larger than the others, hence first
    summary = ingest(Job(source, tmp_path / "out", jobs=1, **options))
    assert (summary.volumes["failed"], summary.volumes["skipped"]) == (failed, skipped)
    assert summary.codes.get("E-ING-SKIPPED", 0) == skipped


def test_folders_in_each_other_are_refused(tmp_path):
    source = _small(tmp_path, 1)
    for out in (source, source / "out", tmp_path):
        with pytest.raises(UserError, match="E-ING-OUT"):
            ingest(Job(source, out))
    with pytest.raises(UserError, match="E-ING-SOURCE"):
        ingest(Job(tmp_path / "nothing", tmp_path / "out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    with pytest.raises(UserError, match="E-ING-OUT"):
        ingest(Job(source, tmp_path / "full"))
    for private in (source / "p", tmp_path / "o" / "p"):
        with pytest.raises(SafetyRefusal, match="E-DEID-KEY-PLACE"):
            ingest(Job(source, tmp_path / "o", private=private))


def test_a_private_folder_leads_back_from_one_source_alone(tmp_path):
    first, second = _small(tmp_path / "a", 2), _small(tmp_path / "b", 1)
    private = tmp_path / "private"
    ingest(Job(first, tmp_path / "out", jobs=1, private=private))
    paths = (private / "files.csv").read_bytes()
    with pytest.raises(UserError, match=r"E-ING-OUT.*private folder.*another source"):
        ingest(Job(second, tmp_path / "other", jobs=1, private=private))
    assert (private / "files.csv").read_bytes() == paths
    ingest(Job(second, tmp_path / "other", jobs=1, private=private, overwrite=True))
    with FileLock(private / ".lock"), pytest.raises(UserError, match=r"E-ING-LOCK.*private folder"):
        ingest(Job(second, tmp_path / "third", jobs=1, private=private))


def test_a_preamble_and_nothing_behind_it_is_a_damaged_file(tmp_path):
    source = _small(tmp_path, 1)
    (source / "IM9.dcm").write_bytes(bytes(128) + b"DICM")
    summary = ingest(Job(source, tmp_path / "out", jobs=1))
    assert summary.codes["E-DCM-HEADER"] == 1 and summary.exit_code == 3


def test_a_study_of_another_source_is_not_mixed_with_this_one(tmp_path):
    first, second = _small(tmp_path / "a", 2), _small(tmp_path / "b", 1)
    out = tmp_path / "out"
    ingest(Job(first, out, jobs=1))
    with pytest.raises(UserError, match=r"E-ING-OUT.*another source"):
        ingest(Job(second, out, jobs=1))
    with pytest.raises(UserError, match=r"E-ING-OUT.*other naming"):
        ingest(Job(first, out, jobs=1, keep_names=True))
    (out / "images" / "mine.txt").write_text("x")
    ingest(Job(second, out, jobs=1, overwrite=True))
    assert len(list((out / "images").glob("*.nii.gz"))) == 1 and (out / "images" / "mine.txt").exists()


def test_a_second_job_on_one_folder_refuses(tmp_path):
    source = _small(tmp_path, 1)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(UserError, match="E-ING-LOCK"):
        ingest(Job(source, tmp_path / "out"))


DRIVER = """
import os, resource, sys
from pathlib import Path
from medmtl.errors import TrainingInterrupted, UserError
from medmtl.ingest import pipeline, report, scan
from medmtl.ingest.ledger import Ledger

where, number, count, source, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:])

def struck(place, module, name):
    real, calls = getattr(module, name), []
    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            (os.killpg if place == "group" else os.kill)(os.getpgid(0) if place == "group" else os.getpid(), number)
        return real(*arguments, **options)
    setattr(module, name, call)

if __name__ == "__main__":
    os.setpgid(0, 0)
    match where:
        case "scan": struck(where, scan.Index, "add")
        case "ledger" | "group": struck(where, Ledger, "append")
        case "manifest": struck(where, pipeline, "write_manifest")
        case "report": struck(where, report, "write_atomic")
        case "disk": resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))
    try:
        job = pipeline.Job(source, out, jobs=2, key=out.parent / "key", masks={"lesion": r"_T1w\\.nii -> _lesion.nii"})
        sys.exit(pipeline.ingest(job).exit_code)
    except (TrainingInterrupted, UserError) as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


def _run(tmp_path, where, number, count, source, out):
    """A job in a process of its own, struck by a signal or short of disk; its exit status and what it said."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    arguments = [where, str(int(number)), str(count), os.fspath(source), os.fspath(out)]
    done = subprocess.run(
        [sys.executable, driver, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_with_the_same_bytes(source, study, tmp_path):
    out = tmp_path / "out"
    shutil.copy(study[1].parent / "key", tmp_path / "key")
    for where, count in (("scan", 2), ("ledger", 1), ("ledger", 3), ("manifest", 1), ("report", 2), ("report", 3)):
        assert _run(tmp_path, where, SIGKILL, count, source[0], out)[0] == -SIGKILL, where
        assert not (out / "ingest_report.json").exists()
    with (out / "cases.jsonl").open("r+b") as stream:
        stream.truncate((out / "cases.jsonl").stat().st_size - 9)
    (out / "images" / ".half.tmp.nii.gz").write_bytes(b"half")
    code, said = _run(tmp_path, "", 0, 0, source[0], out)
    assert code == 3, said
    assert _files(out) == _files(study[1])


@pytest.mark.slow
@pytest.mark.parametrize(("where", "number", "expected"), [("ledger", SIGTERM, 143), ("group", SIGINT, 130)])
def test_a_signal_finishes_what_is_at_hand_and_the_next_run_the_rest(tmp_path, where, number, expected):
    source, out = _small(tmp_path, 6), tmp_path / "out"
    code, said = _run(tmp_path, where, number, 1, source, out)
    assert code == expected and "resume" in said and "Traceback" not in said
    lines = (out / "cases.jsonl").read_text().splitlines()
    assert 1 <= len(lines) < 6 and not (out / "manifest.csv").exists()
    assert len(list((out / "images").glob("*.nii.gz"))) == len(lines)
    assert not list(out.rglob("*.tmp*"))
    assert _run(tmp_path, "", 0, 0, source, out)[0] == 0
    assert len((out / "cases.jsonl").read_text().splitlines()) == 6


def test_a_disk_without_room_is_told_of_before_the_first_image(tmp_path, monkeypatch):
    source = _small(tmp_path, count=2)
    first, second = (Image.effect_noise((40, 40), 20) for _ in range(2))
    first.save(source / "pages.tif", save_all=True, append_images=[second])  # one file of two images counts once
    files = [path for path in source.rglob("*") if path.is_file()]
    need = sum(path.stat().st_size for path in files)
    free = need - 1
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(EnvironmentFailure, match=rf"E-DISK .*need about {need / 2**20:,.1f} MiB") as refused:
        ingest(_job(source, tmp_path / "out"))
    assert refused.value.exit_code == 5 and not (tmp_path / "out" / "images").exists()
    free = need
    assert ingest(_job(source, tmp_path / "out")).volumes["ok"] == 4
    free = 0  # nothing is left to be written
    assert ingest(_job(source, tmp_path / "out")).resumed == 4


def test_the_room_for_volumes_is_taken_from_their_headers(tmp_path, monkeypatch):
    write_phantom(tmp_path / "source" / "jpeg-2000", "jpeg-2000")
    asked = []
    monkeypatch.setattr(pipeline, "check_space", lambda out, cases, **how: asked.append(space.needed(cases, **how)))
    summary = ingest(_job(tmp_path / "source", tmp_path / "out"))
    (image,) = (tmp_path / "out" / "images").glob("*.nii.gz")
    assert summary.volumes["ok"] == 1
    ingest(_job(tmp_path / "source", tmp_path / "large", uncompressed=True))
    size = nibabel.load(image).dataobj[...].size
    assert asked == [size * 2 // 4, size * 2]  # 16 bits, packed to a quarter or not


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_made_and_the_next_run_goes_on(tmp_path):
    source, out = _small(tmp_path, 3), tmp_path / "out"
    assert _run(tmp_path, "", 0, 0, source, out)[0] == 0
    before = _files(out / "images", but=())
    write_nifti(source / "sub-00" / "large.nii.gz", _volume(8, shape=(60, 60, 60)))
    code, said = _run(tmp_path, "disk", 60_000, 0, source, out)
    assert code == 5 and "E-DISK" in said
    assert _files(out / "images", but=()) == before and not list(out.rglob("*.tmp*"))
    assert _run(tmp_path, "", 0, 0, source, out)[0] == 0
    assert len(read_manifest(out / "manifest.csv").cases) == 4
