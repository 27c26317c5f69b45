"""Laws of a drop folder: nothing is taken while it grows, nothing is tried for ever, SIGTERM ends it."""

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs_made import GRADE, made_bundle, stepping
from rich.console import Console

from medmtl.inference import inputs
from medmtl.inference import watch as watching
from medmtl.inference.job import Job, Summary
from medmtl.inference.ledger import read_ledger
from medmtl.inference.listing import Listing
from medmtl.inference.pipeline import Session
from medmtl.inference.watch import Clock, Settled, watch
from medmtl.ingest.walk import Found, Walked
from medmtl.io.raster import write_png
from medmtl.predictor import Predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("bundle"), GRADE)


def _picture(path: Path, seed: int = 0) -> Path:
    return write_png(path, np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def _watch(bundle: Path, root: Path, *steps: Callable[[], Any], settle_s: float = 10.0) -> Summary:
    """Watch ``root/in``; a step is done after each round, each round is six seconds later; the last one ends it."""
    (root / "in").mkdir(exist_ok=True)
    job = Job(bundle, root / "in", root / "out", device="cpu")
    return watch(job, settle_s=settle_s, clock=stepping(steps), console=Console(file=io.StringIO()))


def _nothing() -> None:
    pass


def _ids(root: Path) -> list[str]:
    return [entry.id for entry in read_ledger(root / "out" / "cases.jsonl")]


def test_a_study_that_has_stopped_growing_is_taken_once() -> None:
    settled = Settled(10.0)
    small, large = (Found("a", 1, 1, 1),), (Found("a", 2, 2, 1),)
    assert settled.look({"a": small}, 0.0) == []
    assert settled.look({"a": large}, 9.0) == []  # it grew
    assert settled.look({"a": large}, 18.9) == []
    assert settled.look({"a": large, "b": small}, 19.0) == ["a"]
    settled.taken["a"] = large
    assert settled.look({"a": large, "b": small}, 29.0) == ["b"]
    assert settled.look({"a": small}, 30.0) == []
    assert settled.look({"a": small}, 40.0) == ["a"]  # it changed, and settled


def test_what_is_dropped_is_predicted_when_it_has_settled(bundle: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    rows: list[int] = []

    def look() -> None:
        table = out / "predictions.csv"
        rows.append(len(table.read_text().splitlines()) - 1 if table.exists() else 0)

    def drop() -> None:
        _picture(source / "one" / "a.png")

    def grow() -> None:
        look()
        _picture(source / "one" / "b.png", 1)

    summary = _watch(bundle, tmp_path, drop, _nothing, grow, look, look, look)
    assert rows == [0, 0, 0, 2]  # both at once, and none while it grew
    assert (summary.ok, summary.exit_code) == (2, 0)
    assert sorted(_ids(tmp_path)) == ["one/a.png", "one/b.png"]
    assert (out / "manifest.json").exists()


def test_a_damaged_file_is_a_row_and_not_tried_again(bundle: Path, tmp_path: Path) -> None:
    _picture(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes((tmp_path / "in" / "good.png").read_bytes()[:300])
    summary = _watch(bundle, tmp_path, *[_nothing] * 8)
    assert (summary.ok, summary.failed) == (1, 1)
    assert sorted(_ids(tmp_path)) == ["bad.png", "good.png"]  # one line each
    _picture(tmp_path / "in" / "bad.png", 3)
    assert _watch(bundle, tmp_path, _nothing, _nothing, _nothing).ok == 2  # mended


def test_a_study_that_ends_the_process_is_quarantined(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _picture(tmp_path / "in" / "a" / "good.png")
    _picture(tmp_path / "in" / "b" / "poison.png", 1)
    _picture(tmp_path / "in" / "c" / "good.png", 2)
    real, deaths = Predictor.decode, []

    class Death(BaseException):
        """What a kill looks like from inside: nothing is written behind it."""

    def decode(self: Predictor, image: torch.Tensor, *more: Any) -> dict[str, torch.Tensor]:
        if len(deaths) < 5 and abs(float(image.mean()) - _mean(tmp_path / "in" / "b" / "poison.png")) < 1e-6:
            deaths.append(1)
            raise Death
        return real(self, image, *more)

    monkeypatch.setattr(Predictor, "decode", decode)
    for _ in range(2):
        with pytest.raises(Death):
            _watch(bundle, tmp_path, _nothing, _nothing, _nothing)
    summary = _watch(bundle, tmp_path, _nothing, _nothing, _nothing)
    assert len(deaths) == 2
    assert (summary.ok, summary.failed) == (2, 1)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told["inputs"] == {"a/good.png": "ok", "b/poison.png": "E-PRE-POISON", "c/good.png": "ok"}
    deaths += [1] * 5  # the decoder was mended
    _picture(tmp_path / "in" / "b" / "poison.png", 4)
    assert _watch(bundle, tmp_path, _nothing, _nothing, _nothing).ok == 3


def test_a_quarantined_study_is_tried_again_when_it_is_touched(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _picture(tmp_path / "in" / "a" / "good.png")

    class PowerCut(BaseException):
        """Not the study's fault, which nobody can know."""

    def decode(self: Predictor, image: torch.Tensor, *more: Any) -> dict[str, torch.Tensor]:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "decode", decode)
        for _ in range(2):
            with pytest.raises(PowerCut):
                _watch(bundle, tmp_path, _nothing, _nothing, _nothing)

    def told() -> Any:
        return json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]

    def touch() -> None:
        assert told() == {"a/good.png": "E-PRE-POISON"}  # though nothing is wrong any more
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))

    assert _watch(bundle, tmp_path, _nothing, _nothing, touch, _nothing, _nothing, _nothing).ok == 1
    assert told() == {"a/good.png": "ok"}


def _mean(path: Path) -> float:
    from medmtl.io.raster import read_image

    return float(torch.as_tensor(read_image(path, channels=3)).mean())


def test_a_signal_in_the_middle_of_a_study_is_no_failure_of_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(40):
        _picture(tmp_path / "in" / "a" / f"{n:02d}.png", n)
    real = Predictor.decode
    with monkeypatch.context() as patch:

        def decode(self: Predictor, image: torch.Tensor, *more: Any) -> dict[str, torch.Tensor]:
            os.kill(os.getpid(), signal.SIGTERM)
            return real(self, image, *more)

        patch.setattr(Predictor, "decode", decode)
        assert _watch(bundle, tmp_path, *[_nothing] * 9).ok == 32  # the batch at hand
    assert json.loads((tmp_path / "out" / watching._BEGUN).read_text()) == {}
    assert _watch(bundle, tmp_path, _nothing, _nothing, _nothing).ok == 40


def test_many_loose_files_are_one_look_and_one_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a study; a walk and tables for each would take time that grows with the square of their number."""
    for n in range(12):
        _picture(tmp_path / "in" / f"{n:02d}.png", n)
    walks, reports = [], []
    walk, report = inputs.walk, Session.report
    monkeypatch.setattr(inputs, "walk", lambda root: walks.append(root) or walk(root))
    monkeypatch.setattr(Session, "report", lambda self, listing: reports.append(listing) or report(self, listing))
    assert _watch(bundle, tmp_path, *[_nothing] * 4).ok == 12
    assert len(walks) == 6  # at the start, and one a round
    assert [len(listing.inputs) for listing in reports] == [12, 12]  # when all were taken, and at the end


def test_a_long_queue_is_reported_on_while_it_is_dealt_with(bundle: Path, tmp_path: Path) -> None:
    for n in range(5):
        _picture(tmp_path / "in" / f"{n:02d}.png", n)
    now, rows = [0.0], []

    def tick() -> float:  # a study takes as long as half the time between two reports
        table = tmp_path / "out" / "predictions.csv"
        rows.append(len(table.read_text().splitlines()) - 1 if table.exists() else 0)
        now[0] += watching._REPORT_S / 2
        return now[0]

    def sleep(seconds: float) -> None:
        if rows[-1] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    job = Job(bundle, tmp_path / "in", tmp_path / "out", device="cpu")
    assert watch(job, settle_s=1.0, clock=Clock(tick, sleep), console=Console(file=io.StringIO())).ok == 5
    assert sorted(set(rows)) == [0, 2, 4, 5]


def test_a_study_that_changes_while_others_are_dealt_with_is_not_read(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (_picture(tmp_path / "in" / name / "x.png", n) for n, name in enumerate("ab"))
    whole, real = second.read_bytes(), Session.planned
    asked: list[str] = []

    def planned(self: Session, study: Walked) -> Listing:
        asked.extend(found.path for found in study.files)
        if len(asked) == 1:
            second.write_bytes(whole[:100])  # copied anew, and not yet whole
        return real(self, study)

    monkeypatch.setattr(Session, "planned", planned)
    summary = _watch(bundle, tmp_path, *[_nothing] * 3, lambda: second.write_bytes(whole), *[_nothing] * 4)
    assert asked == ["a/x.png", "b/x.png"] and first.exists()
    assert (summary.ok, summary.failed) == (2, 0)


def test_results_inside_the_drop_folder_are_no_study(bundle: Path, tmp_path: Path) -> None:
    _picture(tmp_path / "in" / "a.png")
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 6
        if now[0] > 40:
            os.kill(os.getpid(), signal.SIGTERM)

    job = Job(bundle, tmp_path / "in", tmp_path / "in" / "out", device="cpu")
    console = Console(file=io.StringIO())
    assert watch(job, settle_s=10, clock=Clock(lambda: now[0], sleep), console=console).total == 1
