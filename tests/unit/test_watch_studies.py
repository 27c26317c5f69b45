"""Laws of the studies in a drop folder: each is planned alone, none takes another's place, none is lost."""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dicom_made
import numpy as np
import pytest
from jobs_made import made_bundle, stepping
from rich.console import Console

from medmtl.files import sha256
from medmtl.inference import inputs
from medmtl.inference.job import Job, Summary
from medmtl.inference.ledger import read_ledger
from medmtl.inference.watch import watch
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume

Step = Callable[[], Any]


ORGAN = {"organ": {"kind": "segmentation", "classes": ["background", "organ"], "decoder": {"width": 16}}}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = {"channels": 1, "volume": {"intensity": {"kind": "range", "low": 0, "high": 1000}}}
    return made_bundle(tmp_path_factory.mktemp("volumes"), ORGAN, volume, "slices")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("pictures"), ORGAN)


def _watch(bundle: Path, root: Path, *drops: Step) -> Summary:
    """Watch ``root/in``: a drop, two rounds in which it settles and is taken, the next drop; then end."""
    (root / "in").mkdir(parents=True, exist_ok=True)
    steps = [step for drop in drops for step in (drop, _nothing, _nothing)]
    job = Job(bundle, root / "in", root / "out", device="cpu", gate="off", overlays=False)
    return watch(job, settle_s=5.0, clock=stepping(steps), console=Console(file=io.StringIO()))


def _nothing() -> None:
    pass


def _series(folder: Path, numbers: range, series: str, **changes: Any) -> Step:
    """Puts slices of a series into a folder."""

    def drop() -> None:
        for number in numbers:
            dicom_made.write(folder / f"{number:03d}.dcm", dicom_made.ct(number=number, series=series, **changes))

    return drop


def _picture(path: Path, seed: int) -> Step:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    return lambda: write_png(path, pixels)


def _split(root: Path) -> list[Step]:
    """A series in two halves, and another one twice, of two patients."""
    return [
        _series(root / "in/A", range(5), "1.2.3"),
        _series(root / "in/B", range(5, 11), "1.2.3"),
        _series(root / "in/C", range(4), "1.2.4"),
        _series(root / "in/D", range(4), "1.2.4", PatientID="ID-78", PatientName="Other^One"),
    ]


def _rows(root: Path) -> dict[str, dict[str, str]]:
    with (root / "out/predictions.csv").open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def _told(root: Path) -> Any:
    return json.loads((root / "out/manifest.json").read_text())


def _ids(root: Path) -> dict[str, str]:
    """The study that each id came from."""
    with (root / "out/sources.private.csv").open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row["file"].partition("/")[0] for row in csv.DictReader(stream)}


def _whole(root: Path) -> None:
    """Every result of the ledger is a row, has files, and they are its own."""
    entries = {entry.id: entry for entry in read_ledger(root / "out/cases.jsonl")}
    assert {name for name, row in _rows(root).items() if row["status"] == "ok"} == set(entries) == set(_ids(root))
    names = [name for entry in entries.values() for name in entry.outputs]
    assert names and len({name.casefold() for name in names}) == len(names)
    for entry in entries.values():
        assert all(sha256(root / "out" / name) == digest for name, digest in entry.outputs.items()), entry.id


def test_halves_of_a_series_and_the_same_series_of_two_patients_are_a_row_each(volumes: Path, tmp_path: Path) -> None:
    assert _watch(volumes, tmp_path, *_split(tmp_path)).ok == 4
    _whole(tmp_path)
    rows = _rows(tmp_path)
    depth = {
        study: read_nifti(tmp_path / "out" / rows[name]["organ.mask"], labels=True).array.shape[2]
        for name, study in _ids(tmp_path).items()
    }
    assert depth == {"A": 5, "B": 6, "C": 4, "D": 4}
    told = _told(tmp_path)
    assert (told["counts"]["total"], told["gone"], told["pending"]) == (4, {}, [])


def test_parts_of_a_series_in_several_studies_are_warned_about(volumes: Path, tmp_path: Path) -> None:
    alone = _series(tmp_path / "in/E", range(3), "1.2.5")
    first, second, *_ = _split(tmp_path)
    _watch(volumes, tmp_path, first, alone)
    assert not any("W-PRE-SPLIT" in row["warnings"] for row in _rows(tmp_path).values())
    _watch(volumes, tmp_path, second)
    studies, rows = _ids(tmp_path), _rows(tmp_path)
    told = {studies[name]: row["warnings"].count("W-PRE-SPLIT") for name, row in rows.items()}
    assert told == {"A": 1, "B": 1, "E": 0}


def test_ids_do_not_depend_on_the_order_of_arrival(volumes: Path, tmp_path: Path) -> None:
    for name, order in (("one", 1), ("two", -1)):
        _watch(volumes, tmp_path / name, *_split(tmp_path / name)[::order])
    assert len(_ids(tmp_path / "one")) == 4
    assert _ids(tmp_path / "one") == _ids(tmp_path / "two")


def test_the_next_watch_tells_of_everything_from_its_first_report(volumes: Path, tmp_path: Path) -> None:
    _watch(volumes, tmp_path, *_split(tmp_path))
    before = (tmp_path / "out/predictions.csv").read_bytes(), _ids(tmp_path)
    ledger = (tmp_path / "out/cases.jsonl").read_bytes()
    assert _watch(volumes, tmp_path).ok == 4  # nothing has settled yet
    assert ((tmp_path / "out/predictions.csv").read_bytes(), _ids(tmp_path)) == before
    summary = _watch(volumes, tmp_path, _nothing)  # all are taken again
    assert (summary.ok, summary.resumed) == (4, 4)
    assert ((tmp_path / "out/predictions.csv").read_bytes(), _ids(tmp_path)) == before
    assert (tmp_path / "out/cases.jsonl").read_bytes() == ledger
    _whole(tmp_path)


def test_what_is_kept_of_studies_names_none_and_may_be_damaged(pictures: Path, tmp_path: Path) -> None:
    _watch(pictures, tmp_path, _picture(tmp_path / "in/Doe^Jane/Doe^Jane.png", 0))
    kept = tmp_path / "out/.taken.json"
    assert len(json.loads(kept.read_text())) == 1 and "Doe" not in kept.read_text()
    for damage in ("", "[1]", "{", '{"a": null}'):
        kept.write_text(damage)
        assert _watch(pictures, tmp_path).total == 0  # not known to be as it was
        assert _told(tmp_path)["gone"] == {"Doe^Jane/Doe^Jane.png": "ok"}
        assert _watch(pictures, tmp_path, _nothing).ok == 1


def test_what_left_the_folder_or_became_another_volume_is_told_of(volumes: Path, tmp_path: Path) -> None:
    first, second, *_ = _split(tmp_path)
    _watch(volumes, tmp_path, first, second)
    old = {study: name for name, study in _ids(tmp_path).items()}
    grow = _series(tmp_path / "in/A", range(5, 8), "1.2.3")
    assert _watch(volumes, tmp_path, grow, lambda: shutil.rmtree(tmp_path / "in/B")).ok == 1
    told = _told(tmp_path)
    new = {study: name for name, study in _ids(tmp_path).items()}
    assert set(new) == {"A"}
    assert told["gone"] == {name: "ok" for name in old.values() if name != new["A"]}
    page = (tmp_path / "out/summary.md").read_text()
    assert f"Not in the tables: {len(told['gone'])} inputs of earlier runs" in page


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a:b/x.png", "a_b/x.png"),
        ("a_b/x.png", "a:b/x.png"),
        ("s/x.png", "S/x.png"),
        ("x.png", "X.png"),
        ("a.png/x.png", "a.png_/x.png"),
    ],
)
def test_studies_of_like_names_keep_their_files(pictures: Path, tmp_path: Path, first: str, second: str) -> None:
    summary = _watch(
        pictures, tmp_path, *(_picture(tmp_path / "in" / name, n) for n, name in enumerate((first, second)))
    )
    assert summary.ok == 2
    _whole(tmp_path)
    assert _watch(pictures, tmp_path, _nothing).resumed == 2
    _whole(tmp_path)


def test_a_volume_and_its_packed_copy_keep_their_files(volumes: Path, tmp_path: Path) -> None:
    def drop(name: str, seed: int) -> Step:
        array = np.random.default_rng(seed).integers(0, 900, (9, 8, 5)).astype(np.int16)
        return lambda: write_nifti(tmp_path / "in" / name, Volume(array, np.diag([1.0, 1.5, 2.0, 1.0])))

    def plain() -> None:
        drop("x.nii.gz", 0)()
        path = tmp_path / "in/x.nii.gz"
        (tmp_path / "in/x.nii").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()

    assert _watch(volumes, tmp_path, plain, drop("x.nii.gz", 1)).ok == 2
    _whole(tmp_path)


def test_no_file_of_a_study_that_grows_is_opened(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = inputs.read_headers

    def read_headers(task: Any) -> list[str]:
        opened.extend(found.path for found in task.files)
        return real(task)

    monkeypatch.setattr(inputs, "read_headers", read_headers)
    source = tmp_path / "in"

    def grow(size: int) -> Step:
        def more() -> None:
            (source / "half").mkdir(exist_ok=True)
            (source / "half/y.png").write_bytes(b"\x89PNG" + b"\0" * size)

        return more

    def both() -> None:
        _picture(source / "done/x.png", 0)()
        grow(1)()

    left = [both, grow(2), grow(3), grow(4)]
    clock = stepping(left)
    job = Job(pictures, source, tmp_path / "out", device="cpu", gate="off")
    source.mkdir()
    for _ in range(2):  # the second watch begins with a half that the first did not take
        done = watch(job, settle_s=5.0, clock=clock, console=Console(file=io.StringIO()))
        assert done.total == done.ok == 1
        assert opened == ["done/x.png"]
        opened.clear()
        left[:] = [grow(5), grow(6)]
