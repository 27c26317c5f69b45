"""Results of earlier jobs below a source are left aside by ingestion, counted and told; what is no result is taken."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs_made import GRADE, made_bundle
from rich.console import Console

from medmtl.inference.job import Job as PredictJob
from medmtl.inference.pipeline import predict
from medmtl.ingest import earlier
from medmtl.ingest.command import told
from medmtl.ingest.job import Job, Summary
from medmtl.ingest.pipeline import ingest
from medmtl.ingest.walk import walk
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume

QUIET = Console(quiet=True)
ORGAN = {"organ": {"kind": "segmentation", "classes": ["background", "organ"], "decoder": {"width": 16}}}
MASKS = {"organ": r"pictures/(.)\.png -> drawn/\1.png"}


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def _ingest(source: Path, out: Path, **more: object) -> Summary:
    return ingest(Job(source, out, jobs=1, **more), console=QUIET)


def _kinds(summary: Summary) -> dict[str, int]:
    """Kind of the file -> count, of what the private table says was left aside as earlier results."""
    with (summary.paths["private"] / "files.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert all(row["status"] == "ignored" and not row["case"] for row in rows if row["kind"] == earlier.KIND)
    return {kind: sum(row["kind"] == kind for row in rows) for kind in {row["kind"] for row in rows}}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with a mask each."""
    root = tmp_path_factory.mktemp("scans") / "in"
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        write_png(root / f"pictures/{n}.png", pixels)
        write_png(root / f"drawn/{n}.png", pixels[..., 0] % 2)
    return root


@pytest.fixture(scope="module")
def study(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ingestion made of them."""
    out = tmp_path_factory.mktemp("made") / "study"
    summary = _ingest(scans, out, masks=MASKS)
    assert summary.volumes["ok"] == 2 and not summary.ignored_kinds
    assert {path.parent.name for path in out.rglob("*.png")} == {"images", "organ", "thumbnails"}
    return out


def test_the_results_of_a_prediction_are_no_scans(scans: Path, tmp_path: Path) -> None:
    """Pictures and volumes: masks, overlays, NIfTI files; and the tables."""
    source = shutil.copytree(scans / "pictures", tmp_path / "in")
    before = _ingest(source, tmp_path / "before")
    bundle = made_bundle(tmp_path / "bundle", GRADE | ORGAN)
    predict(PredictJob(bundle, source, source / "ward/out", device="cpu", gate="off"), console=QUIET)
    (source / "ward/out/cases/x").mkdir(parents=True)
    write_nifti(source / "ward/out/cases/x/organ.nii.gz", Volume(np.ones((4, 4, 4), np.int16), np.eye(4)))
    (source / "ward/out/away.png").symlink_to("/nowhere")  # refused where it is no result
    count = _files(source / "ward/out") + 1
    summary = _ingest(source, tmp_path / "study")
    assert (summary.exit_code, summary.files) == (0, {**before.files, "ignored": count})
    assert summary.volumes == before.volumes == {"ok": 2, "failed": 0, "skipped": 0}
    assert summary.ignored_kinds == {earlier.KIND: count} and _kinds(summary)[earlier.KIND] == count
    said = f"{count} files are {earlier.KIND} and were left aside"
    assert said in "\n".join(told(summary, as_json=False)) and said in summary.paths["page"].read_text()
    assert json.loads(summary.paths["report"].read_text())["ignored"] == {earlier.KIND: count}


def test_a_study_below_the_source_is_not_taken_again(scans: Path, study: Path, tmp_path: Path) -> None:
    source = shutil.copytree(scans, tmp_path / "in")
    shutil.copytree(study, source / "ward/study")
    summary = _ingest(source, tmp_path / "out", masks=MASKS)
    assert summary.volumes["ok"] == 2
    assert summary.ignored_kinds == {earlier.KIND: _files(study)}
    (source / "ward/study/cases.jsonl").write_bytes(b"")  # killed before its first volume, or a dry run
    assert _ingest(source, tmp_path / "out", masks=MASKS).ignored_kinds == {earlier.KIND: _files(study)}


def test_a_study_that_is_the_source_gives_its_images_alone(study: Path, tmp_path: Path) -> None:
    summary = _ingest(study, tmp_path / "out")
    assert summary.volumes["ok"] == 2
    assert _kinds(summary)[earlier.KIND] == 5  # masks, thumbnails, ledger


def test_a_source_without_results_hears_nothing_of_them(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text('{"id": 1, "status": "ok"}\n')  # another program's
    walked = walk(tmp_path)
    assert earlier.left_aside(tmp_path, walked, whole_studies=True) == walked
    assert earlier.told(sum(item.kind == earlier.KIND for item in walked.asides)) == ""
