"""Laws of a prediction job: every image is a row, however bad; it goes on where it stopped; drawings lie in place."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from rich.console import Console

import medmtl
from medmtl import bundle as bundles
from medmtl.bundle import ModelSpec, save_bundle
from medmtl.errors import EnvironmentFailure, TrainingInterrupted, UserError
from medmtl.inference import forward, pipeline, reading
from medmtl.inference.ledger import read_ledger
from medmtl.inference.pipeline import Job, Summary, predict
from medmtl.inference.writers import overlay as overlays
from medmtl.inference.writers.overlay import colour, outline, overlay
from medmtl.inference.writers.table import cell
from medmtl.io.raster import read_mask, write_png
from medmtl.predictor import Predictor

TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "high"], "threshold": 0.0},
    "age": {"kind": "regression", "low": -100, "high": 100, "unit": "years"},
    "gland": {"kind": "segmentation", "classes": ["background", "gland", "lumen"], "decoder": {"width": 16}},
    "site": {"kind": "domain_adversary", "classes": ["A", "B"]},
}
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _bundle(folder: Path, preprocess: dict[str, Any], tasks: dict[str, Any] = TASKS, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tree = {"preprocess": preprocess, "encoder": {"name": "test_efficientnet"}, "tasks": tasks}
    spec = ModelSpec.model_validate(tree)
    save_bundle(folder, spec, spec.build(), provenance={}, card="{bundle_id}")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bundle(tmp_path_factory.mktemp("bundle"), {"window": [32, 32], "normalise": {"kind": "image"}})


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for images of any size."""
    return _bundle(tmp_path_factory.mktemp("free"), {})


def _pixels(seed: int, *size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def _good(root: Path, count: int = 7, size: tuple[int, int] = (32, 40)) -> Path:
    for i in range(count):
        write_png(root / f"{i}.png", _pixels(i, *size))
    return root


def _job(bundle: Path, source: Path, out: Path, **more: Any) -> Job:
    return Job(bundle, source, out, **{"device": "cpu", "batch_size": 3, **more})


def _run(*args: Any, **more: Any) -> Summary:
    return predict(_job(*args, **more), console=QUIET)


def _table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def _results(out: Path) -> dict[str, bytes]:
    """Every file of a job but those that tell the time."""
    timed = (".lock", "cases.jsonl", "manifest.json", "summary.md")
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in timed)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def _decoding(monkeypatch: pytest.MonkeyPatch, instead: Callable[[int, Any], Any]) -> list[int]:
    """Replace decoding: ``instead(call, images) -> outputs``, None for the real ones. Returns the sizes of batches."""
    real, sizes = Predictor.decode, []

    def decode(self: Predictor, image: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(image))
        outputs = instead(len(sizes), image)
        return real(self, image) if outputs is None else outputs

    monkeypatch.setattr(Predictor, "decode", decode)
    return sizes


# ---- contents


@pytest.fixture(scope="module")
def mixed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Path]:
    """A job over good and bad images of every kind."""
    root = tmp_path_factory.mktemp("mixed")
    source = _good(root / "in", 3)
    rgb = Image.fromarray(_pixels(9, 48, 33))
    rgb.save(source / "photo.JPG", format="JPEG")
    rgb.save(source / "one.tif")
    rgb.save(source / "many.tiff", save_all=True, append_images=[Image.fromarray(_pixels(8, 32, 32))])
    write_png(source / "=SUM(1).png", _pixels(3, 32, 32))
    write_png(source / "blank.png", np.full((32, 32, 3), 7, np.uint8))
    (source / "empty.png").write_bytes(b"")
    (source / "cut.png").write_bytes((source / "0.png").read_bytes()[:900])
    (source / "text.png").write_text("not an image")
    Image.fromarray(np.dstack([_pixels(1, 32, 32), np.full((32, 32), 9, np.uint8)])).save(source / "glass.png")
    write_png(source / "grey.png", _pixels(1, 32, 32)[..., 0])
    write_png(source / "small.png", _pixels(1, 31, 32))
    (source / "notes.txt").write_text("x")
    return _run(bundle, source, root / "out", workers=2), root / "out"


def test_every_image_is_a_row_and_bad_ones_say_why(mixed: tuple[Summary, Path]) -> None:
    summary, out = mixed
    assert (summary.total, summary.ok, summary.failed, summary.ignored, summary.exit_code) == (15, 9, 6, 1, 3)
    rows, errors = _table(out / "predictions.csv"), _table(out / "errors.csv")
    kinds = {
        "DAMAGED": "cut",
        "ALPHA": "glass",
        "COLOUR": "grey",
        "SMALL": "small",
    }
    bad = {f"{name}.png": f"E-IMG-{kind}" for kind, name in kinds.items()}
    bad |= {"empty.png": "E-FILE-EMPTY", "text.png": "E-FILE-CONTENT"}  # by their first bytes, before being opened
    assert {name: row["code"] for name, row in errors.items()} == bad
    assert all(row["message"] and row["remedy"] for row in errors.values())
    assert errors["small.png"]["remedy"].startswith("give the image in the resolution of the training images")
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(bad)
    assert set(rows) == {*bad, "0.png", "1.png", "2.png", "photo.JPG", "one.tif", "many.tiff#0", "many.tiff#1",
                         "'=SUM(1).png", "blank.png"}  # fmt: skip
    assert list(rows) == [cell(entry) for entry in sorted(name.removeprefix("'") for name in rows)]


def test_cells_are_those_of_the_tasks(mixed: tuple[Summary, Path], bundle: Path) -> None:
    _, out = mixed
    rows = _table(out / "predictions.csv")
    assert list(rows["0.png"]) == [
        "image", "status", "grade.label", "grade.p.low", "grade.p.high", "age.value", "age.unit",
        "gland.fraction.gland", "gland.fraction.lumen", "gland.mask", "gate", "gate.reason", "refer_to_reader",
        "refer.reason", "bundle", "warnings",
    ]  # fmt: skip
    loaded = bundles.load_bundle(bundle)
    image = torch.from_numpy(_pixels(0, 32, 40)).permute(2, 0, 1) / 255
    decoded = Predictor.of(loaded).decode(loaded.spec.preprocess.apply(image)[None])
    row = rows["0.png"]
    assert row["grade.label"] == "high"  # the frozen threshold is 0
    assert float(row["grade.p.low"]) == pytest.approx(float(decoded["grade"][0, 0]), abs=1e-6)
    assert float(row["age.value"]) == pytest.approx(float(decoded["age"][0]), abs=1e-5)
    labels = decoded["gland"][0].argmax(0).numpy()
    for k, name in enumerate(("gland", "lumen"), start=1):
        assert float(row[f"gland.fraction.{name}"]) == pytest.approx((labels == k).mean(), abs=1e-6)
    mask = read_mask(out / row["gland.mask"])
    assert mask.shape == (32, 40)
    np.testing.assert_array_equal(mask[:, 4:36], labels)
    assert not mask[:, :4].any()
    assert row["bundle"] == loaded.id
    assert rows["empty.png"]["age.value"] == ""


def test_warnings_masks_overlays_and_the_summary(mixed: tuple[Summary, Path]) -> None:
    summary, out = mixed
    rows = _table(out / "predictions.csv")
    assert rows["0.png"]["warnings"] == "W-PRE-WINDOW the network saw the centre only, 80 % of the image"
    assert rows["blank.png"]["warnings"] == "W-PRE-BLANK every pixel has the same value"
    assert rows["many.tiff#1"]["gland.mask"] == "masks/gland/many.tiff.p1.png"
    assert len(list((out / "masks").rglob("*.png"))) == len(list((out / "overlays").rglob("*.png"))) == 9
    with Image.open(out / "overlays" / "gland" / "photo.JPG.png") as image:
        assert image.size == (33, 48)
    told = json.loads((out / "manifest.json").read_text())
    assert told["counts"] == {"total": 15, "ok": 9, "failed": 6, "skipped": 0, "resumed": 0, "referred": 6}
    assert told["files"] == {"seen": 15, "ignored": {".txt": 1}}  # two pages are one file
    assert set(told["inputs"]) == {row.removeprefix("'") for row in rows}
    assert told["inputs"]["empty.png"] == "E-FILE-EMPTY"
    assert set(told["seconds"]) == {"find", "read", "forward", "write", "total"}
    assert list(told["seconds_per_image"]) == [f"1 {told['bundles'][0]}"]
    assert told["colours"]["gland"] == {"gland": "#e69f00", "lumen": "#56b4e9"}
    assert "research use only" in told["use"]
    page = summary.paths["summary"].read_text()
    assert "9 of 15 inputs have a result, 6 failed" in page
    assert "| E-IMG-ALPHA | 1 | flatten it on the background that you mean |" in page
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_no_line_holds_more_than_relative_paths(mixed: tuple[Summary, Path]) -> None:
    _, out = mixed
    for name in ("cases.jsonl", "predictions.csv", "errors.csv", "summary.md", "manifest.json", "sources.private.csv"):
        assert str(out.parent) not in (out / name).read_text()
    refused = ("empty.png", "text.png")  # never opened
    assert all(entry.sha256 for entry in read_ledger(out / "cases.jsonl") if entry.id not in refused)
    assert (out / "sources.private.csv").stat().st_mode & 0o777 == 0o600


# ---- the same result whatever the batches


def test_results_depend_neither_on_batch_size_nor_on_names_nor_on_threads(free: Path, tmp_path: Path) -> None:
    sizes = [(32, 32), (33, 47), (32, 32), (64, 32), (33, 47), (5, 5)]
    for i, size in enumerate(sizes):
        write_png(tmp_path / "a" / f"{i}.png", _pixels(i, *size))
        write_png(tmp_path / "b" / f"{9 - i}.png", _pixels(i, *size))
    _run(free, tmp_path / "a", tmp_path / "one", batch_size=1)
    _run(free, tmp_path / "a", tmp_path / "all", batch_size=32, workers=3)
    _run(free, tmp_path / "b", tmp_path / "turned", batch_size=4)
    by_id = {
        out: {entry.id: entry for entry in read_ledger(tmp_path / out / "cases.jsonl")}
        for out in ("one", "all", "turned")
    }
    for i in range(len(sizes)):
        entries = [by_id["one"][f"{i}.png"], by_id["all"][f"{i}.png"], by_id["turned"][f"{9 - i}.png"]]
        masks = [
            read_mask(tmp_path / out / entry.cells["gland.mask"]) for out, entry in zip(by_id, entries, strict=True)
        ]
        assert masks[0].shape == sizes[i]
        for entry, mask in zip(entries[1:], masks[1:], strict=True):
            np.testing.assert_array_equal(mask, masks[0])
            for key in ("grade.p.low", "grade.p.high", "gland.fraction.gland"):
                assert entry.cells[key] == pytest.approx(entries[0].cells[key], abs=1e-6)


def test_images_of_one_shape_go_through_together(free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, size in enumerate([(32, 32), (32, 33), (32, 32), (32, 33), (32, 33)]):
        write_png(tmp_path / "in" / f"{i}.png", _pixels(i, *size))
    sizes = _decoding(monkeypatch, lambda call, image: None)
    _run(free, tmp_path / "in", tmp_path / "out", batch_size=5)
    assert sizes == [2, 3]
    monkeypatch.setattr(forward, "_MAX_VALUES", 2 * 3 * 32 * 33)
    _run(free, tmp_path / "in", tmp_path / "less", batch_size=5)
    assert sizes[2:] == [2, 2, 1]


def test_views_are_averaged(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _good(tmp_path / "in", 1, (32, 32))
    write_png(source / "flipped.png", np.ascontiguousarray(_pixels(0, 32, 32)[:, ::-1]))
    _run(bundle, source, tmp_path / "out", views="flips")
    plain, flipped = (read_mask(tmp_path / "out" / f"masks/gland/{name}.png.png") for name in ("0", "flipped"))
    np.testing.assert_array_equal(plain, flipped[:, ::-1])


# ---- resuming


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Seven images, one of them bad, and the results of an uninterrupted job."""
    root = tmp_path_factory.mktemp("whole")
    _good(root / "in")
    (root / "in" / "4.png").write_bytes(b"")
    _run(bundle, root / "in", root / "out")
    return root / "in", _results(root / "out")


def _fail_at(call: int, error: BaseException) -> Callable[[int, Any], None]:
    def instead(number: int, image: torch.Tensor) -> None:
        if number == call:
            raise error

    return instead


def test_a_resumed_job_ends_with_the_same_bytes(
    bundle: Path, whole: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, expected = whole
    with monkeypatch.context() as patch:
        _decoding(patch, _fail_at(3, KeyError("a bug")))
        with pytest.raises(KeyError):
            _run(bundle, source, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()
    sizes = _decoding(monkeypatch, lambda call, image: None)
    summary = _run(bundle, source, tmp_path / "out")
    assert (sizes, summary.resumed, summary.exit_code) == ([1], 5, 3)
    assert _results(tmp_path / "out") == expected
    assert _run(bundle, source, tmp_path / "out").resumed == 6
    assert sizes == [1]
    assert _results(tmp_path / "out") == expected


def test_a_batch_recorded_in_part_is_composed_as_before(
    bundle: Path, whole: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, expected = whole
    _run(bundle, source, tmp_path / "out")
    ledger = tmp_path / "out" / "cases.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2])[:-20])  # the second one is cut
    sizes = _decoding(monkeypatch, lambda call, image: None)
    assert _run(bundle, source, tmp_path / "out").resumed == 1
    assert sizes == [3, 2, 1]
    assert _results(tmp_path / "out") == expected
    ids = [entry.id for entry in read_ledger(ledger)]
    assert sorted(ids) == sorted(set(ids))


KILLED = """
import os, signal, sys, time
from pathlib import Path
from medmtl.inference.pipeline import Job, predict
from medmtl.predictor import Predictor
real, calls = Predictor.decode, []
def decode(self, image):
    calls.append(1)
    if len(calls) == 3:
        until = time.monotonic() + 60
        while (out / "cases.jsonl").read_text().count("\\n") < 3 and time.monotonic() < until:
            time.sleep(0.01)  # the first batch is recorded beside this one
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, image)
Predictor.decode = decode
bundle, source, out = map(Path, sys.argv[1:])
predict(Job(bundle, source, out, batch_size=3, device="cpu"))
"""


def test_a_killed_job_goes_on(bundle: Path, whole: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    source, expected = whole
    env = {**os.environ, "PYTHONPATH": str(Path(medmtl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(bundle), str(source), str(tmp_path / "out")]
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert len(read_ledger(tmp_path / "out" / "cases.jsonl")) == 3  # the second batch was still being written
    (tmp_path / "out" / "masks" / "gland" / ".0.png.png.abc.tmp.png").write_bytes(b"half")
    assert _run(bundle, source, tmp_path / "out").resumed == 3
    assert _results(tmp_path / "out") == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_batch_and_then_the_job(
    bundle: Path, whole: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: int, code: int,
) -> None:  # fmt: skip
    source, expected = whole
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        _decoding(patch, lambda call, image: os.kill(os.getpid(), number) if call == 2 else None)
        with pytest.raises(TrainingInterrupted) as caught:
            _run(bundle, source, tmp_path / "out")
    assert caught.value.exit_code == code
    assert signal.getsignal(number) == handler
    assert len(read_ledger(tmp_path / "out" / "cases.jsonl")) == 6
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert _run(bundle, source, tmp_path / "out").resumed == 5
    assert _results(tmp_path / "out") == expected


def test_changed_and_mended_images_are_computed_again(bundle: Path, tmp_path: Path) -> None:
    source, out = _good(tmp_path / "in", 4), tmp_path / "out"
    (source / "3.png").write_bytes(b"")
    assert _run(bundle, source, out).exit_code == 3
    write_png(source / "0.png", _pixels(100, 32, 40))
    (source / "1.png").write_bytes(b"now damaged")
    write_png(source / "3.png", _pixels(3, 32, 40))
    (out / "masks" / "gland" / "2.png.png").unlink()
    summary = _run(bundle, source, out)
    assert (summary.ok, summary.resumed) == (3, 0)
    assert not (out / "masks" / "gland" / "1.png.png").exists()
    _run(bundle, source, tmp_path / "anew")
    assert _results(out) == _results(tmp_path / "anew")


# ---- refusals


def test_another_bundle_or_settings_need_overwrite(bundle: Path, tmp_path: Path) -> None:
    source, out = _good(tmp_path / "in", 2), tmp_path / "out"
    other = _bundle(tmp_path / "other", {"window": [32, 32]}, {"grade": TASKS["grade"]}, seed=1)
    _run(bundle, source, out)
    (out / "mine.txt").write_text("mine")
    before = _results(out)
    for job in (_job(other, source, out), _job(bundle, source, out, views="flips")):
        with pytest.raises(UserError, match=r"E-PRE-OUT.*--overwrite"):
            predict(job, console=QUIET)
    assert _results(out) == before
    assert (out / "manifest.json").exists()
    assert _run(other, source, out, overwrite=True).resumed == 0
    assert sorted(_results(out)) == ["errors.csv", "mine.txt", "predictions.csv", "sources.private.csv"]


def test_overwrite_is_the_remedy_for_a_damaged_ledger(bundle: Path, tmp_path: Path) -> None:
    source, out = _good(tmp_path / "in", 2), tmp_path / "out"
    _run(bundle, source, out)
    before = _results(out)
    (out / "cases.jsonl").write_bytes(b"damage\n" + (out / "cases.jsonl").read_bytes())
    with pytest.raises(UserError, match=r"E-PRE-LEDGER.*line 1.*--overwrite"):
        _run(bundle, source, out)
    assert _run(bundle, source, out, overwrite=True).resumed == 0
    assert _results(out) == before


def test_folders_that_are_not_ours_are_left_alone(bundle: Path, tmp_path: Path) -> None:
    source = _good(tmp_path / "all" / "in", 1)
    (tmp_path / "file").write_text("x")
    for out in (source, source.parent, tmp_path / "file"):
        with pytest.raises(UserError, match="E-PRE-OUT"):
            _run(bundle, source, out, overwrite=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "predictions.csv").write_text("mine")
    with pytest.raises(UserError, match="E-PRE-OUT"):
        _run(bundle, source, tmp_path / "docs", overwrite=True)
    assert (tmp_path / "docs" / "predictions.csv").read_text() == "mine"
    with pytest.raises(UserError, match="E-PRE-SOURCE"):
        _run(bundle, tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_inside_the_source_are_never_inputs(bundle: Path, tmp_path: Path) -> None:
    source = _good(tmp_path / "in", 2)
    assert _run(bundle, source, source / "out").total == 2
    again = _run(bundle, source, source / "out")
    assert (again.total, again.resumed) == (2, 2)


def test_two_jobs_cannot_write_to_one_folder(bundle: Path, tmp_path: Path) -> None:
    source = _good(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(UserError, match="E-PRE-LOCK"):
        _run(bundle, source, tmp_path / "out")
    assert _run(bundle, source, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": 0}, {"max_failures": -1}, {"views": "all"}])
def test_a_job_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"E-PRE-JOB.*{next(iter(wrong))}"):
        _job(Path(), Path(), Path(), **wrong)


@pytest.mark.parametrize(
    ("device", "code"), [("tpu", "E-DEV-NAME"), ("cuda:99", "E-DEV-CUDA"), ("cuda:x", "E-DEV-NAME")]
)
def test_an_unknown_device_is_refused(bundle: Path, tmp_path: Path, device: str, code: str) -> None:
    with pytest.raises(UserError, match=code):
        _run(bundle, _good(tmp_path / "in", 1), tmp_path / "out", device=device)


# ---- failures of the network, the disk, the folder


def _outputs(images: torch.Tensor, gland: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    count, *size = len(images), *images.shape[2:]
    return {
        "grade": torch.full((count, 2), 0.5),
        "age": torch.full((count,), 7.0),
        "gland": torch.full((count, 3, *size), 1 / 3) if gland is None else gland,
    }


@pytest.mark.parametrize("task", ["grade", "age", "gland"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_no_number_fails_its_image(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, value: float
) -> None:
    def instead(call: int, images: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = _outputs(images)
        outputs[task].view(len(images), -1)[1, -1] = value
        return outputs

    _decoding(monkeypatch, instead)
    assert _run(bundle, _good(tmp_path / "in", 3), tmp_path / "out").exit_code == 3
    errors = _table(tmp_path / "out" / "errors.csv")
    assert [(name, row["code"]) for name, row in errors.items()] == [("1.png", "E-PRE-FINITE")]


def test_an_image_that_the_network_refuses_fails_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _good(tmp_path / "in", 5)
    write_png(source / "2.png", np.zeros((32, 32, 3), np.uint8))
    write_png(source / "3.png", np.full((32, 32, 3), 0, np.uint8))

    def instead(call: int, images: torch.Tensor) -> None:
        if (images.flatten(1) == 0).all(1).any():
            raise torch.OutOfMemoryError("CUDA out of memory") if len(images) == 1 else RuntimeError("too much")

    _decoding(monkeypatch, instead)
    assert _run(bundle, source, tmp_path / "out", batch_size=5).ok == 3
    assert {row["code"] for row in _table(tmp_path / "out" / "errors.csv").values()} == {"E-PRE-MEMORY"}


def test_a_full_disk_is_the_machines_fault(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _good(tmp_path / "in", 2)

    def full(path: Path, labels: np.ndarray) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(overlays, "write_mask", full)
        with pytest.raises(EnvironmentFailure, match="E-DISK"):
            _run(bundle, source, tmp_path / "out")
    assert _run(bundle, source, tmp_path / "out").exit_code == 0


def test_names_that_no_output_can_have_are_changed(bundle: Path, tmp_path: Path) -> None:
    source = _good(tmp_path / "in", 1)
    long = f"{'x' * 250}.png"
    write_png(source / "a.png", _pixels(1, 32, 32)).rename(source / long)
    write_png(source / "0.png.png" / "inner.png", _pixels(1, 32, 32))  # 0.png's mask is 0.png.png
    write_png(source / "b.png", _pixels(1, 32, 32)).rename(source / os.fsdecode(b"odd\xff.png"))
    write_png(source / "c" / "a:b.png", _pixels(1, 32, 32))
    write_png(source / "C" / "d.png", _pixels(1, 32, 32))
    write_png(source / "c" / "D.png", _pixels(2, 32, 32))
    assert _run(bundle, source, tmp_path / "out").exit_code == 0
    rows = _table(tmp_path / "out" / "predictions.csv")
    masks = {name: row["gland.mask"].removeprefix("masks/gland/") for name, row in rows.items()}
    assert masks["0.png.png/inner.png"].startswith("0.png.png_/inner.png~")
    assert masks[long].startswith("x" * 120 + "~")
    assert masks["odd\\udcff.png"].startswith("odd_.png~")
    assert masks["c/a:b.png"].startswith("c/a_b.png~")
    assert {name.lower().partition("~")[0] for name in (masks["C/d.png"], masks["c/D.png"])} == {"c/d.png"}
    assert len({name.casefold() for name in masks.values()}) == len(rows) == 7


def test_a_source_that_vanishes_fails_the_images_that_are_left(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _good(tmp_path / "in", 9)
    _decoding(monkeypatch, lambda call, image: source.rename(tmp_path / "gone") and None if call == 1 else None)
    summary = _run(bundle, source, tmp_path / "out", overlays=False)
    assert summary.exit_code == 3
    assert summary.ok >= 3
    assert {row["code"] for row in _table(tmp_path / "out" / "errors.csv").values()} == {"E-IMG-FILE"}


def test_too_many_failures_stop_the_job_and_it_can_go_on(bundle: Path, tmp_path: Path) -> None:
    source = _good(tmp_path / "in")
    bad = ("0.png", "1.png", "4.png")
    for name in bad:
        (source / name).write_bytes(b"")
    summary = _run(bundle, source, tmp_path / "out", max_failures=1)
    assert (summary.ok, summary.failed, summary.skipped, summary.exit_code) == (1, 2, 4, 3)
    assert _table(tmp_path / "out" / "errors.csv")["6.png"]["code"] == "E-PRE-STOPPED"
    assert _run(bundle, source, tmp_path / "out", max_failures=3).ok == 4


@pytest.mark.parametrize("files", [{}, {"a.png": b""}, {"a.dcm": b"DICM"}])
def test_nothing_usable(bundle: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    assert _run(bundle, tmp_path / "in", tmp_path / "out").exit_code == 4
    assert (tmp_path / "out" / "predictions.csv").read_text().startswith("image,status,grade.label")


def test_a_file_that_changes_while_it_is_read(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = _good(tmp_path / "in", 1), reading.read_image

    def slow(path: Path, **more: Any) -> np.ndarray:
        pixels = real(path, **more)
        os.utime(path, ns=(1, 1))
        return pixels

    monkeypatch.setattr(reading, "read_image", slow)
    assert _run(bundle, source, tmp_path / "out").exit_code == 4
    assert _table(tmp_path / "out" / "errors.csv")["0.png"]["code"] == "E-PRE-CHANGED"


# ---- what is drawn lies in place


def _by_brightness(call: int, images: torch.Tensor) -> dict[str, torch.Tensor]:
    bright = (images.mean(1) > 0.5).float()
    return _outputs(images, torch.stack([1 - bright, bright, torch.zeros_like(bright)], 1))


@pytest.mark.parametrize(
    ("preprocess", "size", "seen"),
    [
        ({"window": [32, 32]}, (57, 80), (slice(12, 44), slice(24, 56))),
        ({"window": [32, 32], "pad": True}, (21, 64), (slice(0, 21), slice(16, 48))),
        ({"window": [64, 64], "pad": True}, (33, 47), (slice(0, 33), slice(0, 47))),
        ({}, (33, 47), (slice(0, 33), slice(0, 47))),
        ({"resize": [64, 64]}, (32, 128), (slice(0, 32), slice(0, 128))),
    ],
)
def test_mask_and_overlay_lie_on_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preprocess: dict[str, Any], size: tuple[int, int],
    seen: tuple[slice, slice],
) -> None:  # fmt: skip
    bundle = _bundle(tmp_path / "bundle", preprocess)
    mark = np.zeros(size, dtype=bool)
    height, width = size
    mark[height // 2 - 6 : height // 2 + 2, width // 2 - 8 : width // 2 + 12] = True
    mark[:2, :2] = True  # in a corner
    write_png(tmp_path / "in" / "a.png", np.repeat(mark[..., None], 3, 2).astype(np.uint8) * 200)
    _decoding(monkeypatch, _by_brightness)
    _run(bundle, tmp_path / "in", tmp_path / "out")
    looked = np.zeros(size, dtype=bool)
    looked[seen] = True
    mask = read_mask(tmp_path / "out" / "masks" / "gland" / "a.png.png")
    np.testing.assert_array_equal(mask == 1, mark & looked)
    with Image.open(tmp_path / "out" / "overlays" / "gland" / "a.png.png") as image:
        drawn = np.asarray(image)
    edge = outline(mask)
    np.testing.assert_array_equal(drawn[edge], np.broadcast_to(colour(1), (edge.sum(), 3)))
    fill = np.rint(0.65 * 200 + 0.35 * np.array(colour(1)))
    inner = (mask == 1) & ~edge
    assert inner.any()
    assert np.abs(drawn[inner] - fill).max() <= 1
    np.testing.assert_array_equal(drawn[mark & ~looked], 100)  # darkened: the network did not look there
    np.testing.assert_array_equal(drawn[~mark], 0)
    share = float(_table(tmp_path / "out" / "predictions.csv")["a.png"]["gland.fraction.gland"])
    assert share == pytest.approx((mark & looked).sum() / looked.sum(), rel=1e-5)


def test_outline_is_inside_and_the_border_is_no_edge() -> None:
    labels = np.zeros((6, 6), dtype=int)
    labels[1:, :4] = 1
    labels[4:, :2] = 2
    expected = np.array([list(row) for row in ["......", "xxxx..", "...x..", "xx.x..", "xxxx..", ".xxx.."]]) == "x"
    np.testing.assert_array_equal(outline(labels), expected)
    assert outline(labels, width=9).sum() == (labels > 0).sum()
    grey = np.full((1, 6, 6), 0.5, np.float32)
    drawn = overlay(grey, labels, seen=np.ones((6, 6), dtype=bool))
    assert tuple(drawn[4, 0]) == colour(2)
    assert tuple(drawn[0, 0]) == (128, 128, 128)


@pytest.mark.parametrize(
    ("value", "text"),
    [("=1", "'=1"), ("+a", "'+a"), ("-a", "'-a"), ("@a", "'@a"), ("'a", "''a"), ("a=1", "a=1"), (-1.5, "-1.5"),
     (0.12345678, "0.1234568"), (3, "3"), ("", "")],
)  # fmt: skip
def test_no_cell_runs_as_a_formula(value: str | float, text: str) -> None:
    assert cell(value) == text


def test_progress_is_a_line_where_there_is_no_terminal(bundle: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    job = _job(bundle, _good(tmp_path / "in", 4), tmp_path / "out", gate="off")
    predict(job, console=Console(file=text, width=200))
    assert text.getvalue().startswith("4/4 images")
    assert len(text.getvalue().splitlines()) == 1


def test_grey_images_and_a_bundle_for_other_than_files(tmp_path: Path) -> None:
    grey = _bundle(tmp_path / "grey", {"channels": 1, "window": [32, 32]})
    write_png(tmp_path / "in" / "8.png", _pixels(0, 32, 32)[..., 0])
    write_png(tmp_path / "in" / "16.png", _pixels(0, 32, 32)[..., 0].astype(np.uint16) * 257)
    assert _run(grey, tmp_path / "in", tmp_path / "out").exit_code == 0
    masks = [read_mask(path) for path in sorted((tmp_path / "out" / "masks").rglob("*.png"))]
    np.testing.assert_array_equal(masks[0], masks[1])
    with pytest.raises(UserError, match="E-PRE-CHANNELS"):
        _run(_bundle(tmp_path / "four", {"channels": 4}), tmp_path / "in", tmp_path / "out4")


def test_inference_needs_nothing_that_trains() -> None:
    names: Sequence[str] = ("medmtl.engine", "medmtl.evaluation", "medmtl.study", "medmtl.experiment", "medmtl.balance")
    imports = [line for path in Path(pipeline.__file__).parent.rglob("*.py") for line in path.read_text().splitlines()]
    imports = [line for line in imports if line.startswith(("import ", "from "))]
    assert not [line for line in imports for name in (*names, "mlflow") if line.split()[1].startswith(name)]


def test_the_place_of_files_whose_input_is_gone_is_not_given_away(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_png(source / "S" / "x.png", _pixels(1, 32, 32))
    assert _run(bundle, source, tmp_path / "out").exit_code == 0
    (source / "S").rename(source / "s")
    assert _run(bundle, source, tmp_path / "out").exit_code == 0
    names = [name for entry in read_ledger(tmp_path / "out" / "cases.jsonl") for name in entry.outputs]
    assert len({name.casefold() for name in names}) == len(names) == 4
    assert _table(tmp_path / "out" / "predictions.csv").keys() == {"s/x.png"}
