"""No name of a folder or file of the source in any output, unless it is asked for."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from jobs_made import made_bundle
from rich.console import Console

from medmtl.cli import run
from medmtl.data.synthetic.dicom import write_phantom
from medmtl.inference.pipeline import Job, predict
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume

PATIENT = ("DOEWORTH", "JANETHE", "19610203", "Müllerin", "Hansjakob")
PRIVATE = "sources.private.csv"
FOLDER = "DOEWORTH^JANETHE 19610203"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = {
        "grade": {"kind": "classification", "classes": ["low", "high"]},
        "organ": {"kind": "segmentation", "classes": ["background", "bright"], "decoder": {"width": 8}},
    }
    return made_bundle(tmp_path_factory.mktemp("bundle"), tasks, {"window": [16, 16], "pad": True})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two pictures, a damaged one, a link that leaves, a volume and a series, under patients' names."""
    root, rng = tmp_path / "scans", np.random.default_rng(0)
    folder = root / FOLDER
    for name in ("Müllerin, Hansjakob.png", "DOEWORTH_1.png"):
        write_png(folder / name, rng.integers(0, 255, (20, 24, 3)).astype(np.uint8))
    (folder / "JANETHE broken.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "elsewhere.png").write_bytes(b"x")
    (folder / "DOEWORTH link.png").symlink_to(tmp_path / "elsewhere.png")
    write_nifti(folder / "JANETHE.nii.gz", Volume(np.ones((4, 4, 4), np.int16), np.eye(4)))
    write_phantom(folder / "series", "axial")
    return root


def _leaks(folder: Path) -> list[str]:
    """Where a part of a patient's name is: in a name below the folder, or in a file's bytes."""
    found = []
    for path in folder.rglob("*"):
        if path.name == PRIVATE:
            continue
        content = path.read_bytes() if path.is_file() else b""
        for part in PATIENT:
            if part in path.relative_to(folder).as_posix() or part.encode() in content:
                found.append(f"{part} in {path.relative_to(folder)}")
    return found


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_command_names_results_by_a_hash(
    bundle: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["predict", str(bundle), str(scans), str(out), "--device", "cpu", "--write", "json,html"]) == 3
    assert _leaks(out) == []
    told = "".join(capsys.readouterr())
    assert not [part for part in PATIENT if part in told]
    rows, errors = _table(out / "predictions.csv"), _table(out / "errors.csv")
    assert {row["image"].partition("_")[0] for row in rows} >= {"IMG"}
    assert {row["code"] for row in errors} >= {"E-IMG-DAMAGED", "E-SEC-PATH", "E-PRE-KIND"}
    sources = {line["image"]: line["file"] for line in _table(out / PRIVATE)}
    done = [row for row in rows if row["organ.mask"]]
    assert {sources[row["image"]] for row in done} == {
        f"{FOLDER}/Müllerin, Hansjakob.png",
        f"{FOLDER}/DOEWORTH_1.png",
    }
    for row in done:
        assert (out / row["organ.mask"]).is_file() and row["image"] in row["organ.mask"]


def test_paths_are_names_where_that_is_asked_for(bundle: Path, scans: Path, tmp_path: Path) -> None:
    job = Job(bundle, scans, tmp_path / "out", device="cpu", names="path")
    predict(job, console=Console(file=io.StringIO()))
    assert f"{FOLDER}/DOEWORTH_1.png" in {row["image"] for row in _table(tmp_path / "out" / "predictions.csv")}


def test_names_change_no_number(bundle: Path, scans: Path, tmp_path: Path) -> None:
    tables = []
    for names in ("hash", "path"):
        out = tmp_path / names
        predict(Job(bundle, scans, out, device="cpu", batch_size=1, names=names), console=Console(file=io.StringIO()))
        file_of = {line["image"]: line["file"] for line in _table(out / PRIVATE)}
        rows = _table(out / "predictions.csv")
        tables.append({file_of[row["image"]]: row["grade.p.high"] for row in rows if row["organ.mask"]})
    assert tables[0] == tables[1] and len(tables[0]) == 2
