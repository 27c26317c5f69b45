"""Laws of what lies in a source folder and is no patient: results of an earlier prediction are left aside and told."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs_made import GRADE, made_bundle, stepping
from rich.console import Console

from medmtl.cli import run
from medmtl.inference.job import Job
from medmtl.inference.pipeline import look_ahead, predict
from medmtl.inference.watch import watch
from medmtl.inference.writers import Output
from medmtl.ingest import earlier
from medmtl.ingest import folder as ingest_folder
from medmtl.ingest import ledger as ingest_ledger
from medmtl.ingest.walk import walk
from medmtl.io.raster import write_png

ORGAN = {"organ": {"kind": "segmentation", "classes": ["background", "organ"], "decoder": {"width": 16}}}
TOLD = "files are results of an earlier job and were left aside"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("bundle"), GRADE | ORGAN)


@pytest.fixture
def source(bundle: Path, tmp_path: Path) -> Path:
    """Two pictures, and among them what an earlier job said of them."""
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        write_png(tmp_path / f"in/ward/{n}.png", pixels)
    _predict(bundle, tmp_path / "in", tmp_path / "in/ward/first", output=Output(formats=("json", "html")))
    return tmp_path / "in"


def _predict(bundle: Path, source: Path, out: Path, **more: object) -> str:
    said = io.StringIO()
    predict(Job(bundle, source, out, device="cpu", gate="off", **more), console=Console(file=said, width=200))
    return said.getvalue()


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_the_results_of_one_job_are_no_patients_of_the_next(bundle: Path, source: Path, tmp_path: Path) -> None:
    count = _files(source / "ward/first")
    assert count >= 2 * 4 + 6  # masks, overlays and reports; tables
    said = _predict(bundle, source, tmp_path / "second")
    told = json.loads((tmp_path / "second/manifest.json").read_text())
    assert told["inputs"] == {"ward/0.png": "ok", "ward/1.png": "ok"}
    assert told["files"] == {"seen": count + 2, "ignored": {earlier.KIND: count}}
    assert f"Left aside: {count} {earlier.KIND}." in (tmp_path / "second/summary.md").read_text()
    assert f"{count} {TOLD}" in said
    said = _predict(bundle, source, source / "ward/first", overwrite=True)  # its own are not counted
    assert TOLD not in said


def test_a_dry_run_tells_of_them(
    bundle: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(bundle), str(source), str(tmp_path / "o"), "--dry-run", "--device", "cpu"]
    assert run([*arguments, "--gate", "off"]) == 0
    captured = capsys.readouterr()
    count = _files(source / "ward/first")
    assert f"2 of 2 inputs would be tried, in 1 batches; {count} files left aside" in captured.out + captured.err
    assert f"{count} {TOLD}" in " ".join((captured.out + captured.err).split())


@pytest.mark.parametrize("rest", [b"", b'{"id": "ward/0.png", "st'])
def test_what_a_job_left_that_was_killed_early_is_left_aside(
    bundle: Path, source: Path, tmp_path: Path, rest: bytes
) -> None:
    (source / "ward/first/cases.jsonl").write_bytes(rest)
    listing, _ = look_ahead(Job(bundle, source, tmp_path / "o", device="cpu", gate="off"))
    assert [item.id for item in listing.inputs] == ["ward/0.png", "ward/1.png"]
    (source / "ward/first/.lock").unlink()  # nothing says any more that a job wrote here
    listing, _ = look_ahead(Job(bundle, source, tmp_path / "o", device="cpu", gate="off"))
    assert len(listing.inputs) > 2


@pytest.mark.parametrize("line", [b"", b'{"id": "ward/0.png", "st', None])
def test_the_ledger_of_one_of_several_processes_is_enough(source: Path, line: bytes | None) -> None:
    out = source / "ward/first"
    (out / "cases.jsonl").rename(out / ".cases-12.jsonl")
    if line is not None:
        (out / ".cases-12.jsonl").write_bytes(line)
    assert earlier.folders(source, walk(source).files) == ("ward/first/",)
    (out / ".cases-12.jsonl").rename(out / ".cases-x.jsonl")
    assert earlier.folders(source, walk(source).files) == ()


def test_a_users_own_files_beside_an_empty_ledger_are_input(bundle: Path, tmp_path: Path) -> None:
    for name in ("a.png", "cases.jsonl_2024/b.png", "masks/c.png"):
        write_png(tmp_path / "in" / name, np.zeros((32, 40, 3), np.uint8))
    for name in ("cases.jsonl", ".lock"):
        (tmp_path / "in" / name).touch()
    listing, _ = look_ahead(Job(bundle, tmp_path / "in", tmp_path / "out", device="cpu", gate="off"))
    assert [item.id for item in listing.inputs] == ["a.png", "cases.jsonl_2024/b.png"]


@pytest.mark.parametrize("below", ["", "study/"])
def test_the_images_of_an_ingested_study_are_input_and_nothing_else_of_it(
    bundle: Path, tmp_path: Path, below: str
) -> None:
    study = tmp_path / "in" / below
    for name in ("images/a.png", "masks/organ/a.png", "thumbnails/a.png"):
        write_png(study / name, np.random.default_rng(0).integers(0, 2, (32, 40), dtype=np.uint8))
    for name in (earlier.LOCK, earlier.STUDY):
        (study / name).touch()
    assert ingest_folder.IDENTITY == earlier.STUDY
    ledger = ingest_ledger.Ledger(study / "cases.jsonl")
    for entries in ((), (ingest_ledger.Entry("a", "signature", "ok"),)):
        for entry in entries:
            ledger.append(entry)
        listing, _ = look_ahead(Job(bundle, tmp_path / "in", tmp_path / "out", device="cpu", gate="off"))
        assert [item.id for item in listing.inputs] == [f"{below}images/a.png"]
        assert listing.ignored[earlier.KIND] == 3  # its ledger too
    (study / earlier.STUDY).unlink()  # as of a copy: ``cp study/* ...`` leaves hidden files behind
    assert len(earlier.folders(tmp_path, walk(tmp_path).files)) == 3


@pytest.mark.parametrize(
    "content", [b"{}\n", b"[1]\n", b"\xff\n", b'"id status bundle settings"\n', b"[" * 9**5 + b"\n"]
)
def test_another_programs_file_of_the_name_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cases.jsonl").write_bytes(content)
    assert earlier.folders(tmp_path, walk(tmp_path).files) == ()


def test_a_drop_folder_has_no_study_of_results(bundle: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "ward/first", source / "copy")
    count, said = _files(source / "copy"), io.StringIO()
    job = Job(bundle, source, tmp_path / "out", device="cpu", gate="off")
    summary = watch(job, settle_s=5.0, clock=stepping([str] * 3), console=Console(file=said, width=200))
    assert (summary.total, summary.ok) == (2, 2)
    assert summary.ignored_kinds == {earlier.KIND: 2 * count}  # beside the pictures, and alone
    assert said.getvalue().count(f"{2 * count} {TOLD}") == 1
