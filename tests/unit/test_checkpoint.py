"""A checkpoint is whole or refused, one is always loadable, and a history continues as if nothing had happened."""

import datetime
import enum
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import medmtl
from medmtl.engine.callbacks import Callback, Callbacks, History, Progress, TrackingConfig, read_history
from medmtl.engine.checkpoint import BEST, LAST, MAGIC, PREVIOUS, assert_plain, load, load_latest, save
from medmtl.errors import EnvironmentFailure, SafetyRefusal, UserError

ENV = {**os.environ, "PYTHONPATH": str(Path(medmtl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def _flip(path: Path, place: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_round_trip_of_model_optimizer_and_plain_values(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 7,
        "note": None,
        "seen": [1, (2.5, True)],
        3: OrderedDict(a=torch.float16),
    }
    assert save(tmp_path, state, best=False) == tmp_path / LAST
    found = load(tmp_path / LAST)
    assert (found["step"], found["note"], found["seen"], found[3]) == (7, None, [1, (2.5, True)], {"a": torch.float16})
    assert all(torch.equal(found["model"][key], value) for key, value in model.state_dict().items())
    again = torch.optim.AdamW(model.parameters(), foreach=False)
    again.load_state_dict(found["optimizer"])
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_last_previous_and_best_are_those_saved(tmp_path):
    assert load_latest(tmp_path) is None
    for step, best in ((1, False), (2, True), (3, False), (4, False)):
        save(tmp_path, {"step": step}, best=best)
    steps = {path.name: load(path)["step"] for path in tmp_path.iterdir()}
    assert steps == {LAST: 4, PREVIOUS: 3, BEST: 2}
    state, path, warnings = load_latest(tmp_path)
    assert (state["step"], path.name, warnings) == (4, LAST, [])


@pytest.mark.parametrize("place", [0, 20, 60, -100, -1])
def test_a_flipped_bit_is_noticed_and_the_one_before_is_used(tmp_path, place):
    save(tmp_path, {"step": 1, "w": torch.zeros(100)}, best=False)
    save(tmp_path, {"step": 2, "w": torch.zeros(100)}, best=False)
    _flip(tmp_path / LAST, place)
    state, path, warnings = load_latest(tmp_path)
    assert (state["step"], path.name, len(warnings)) == (1, PREVIOUS, 1)
    assert "E-CKPT-" in warnings[0]
    _flip(tmp_path / PREVIOUS, place)
    with pytest.raises(SafetyRefusal, match="E-CKPT-"):
        load_latest(tmp_path)


def test_a_save_after_damage_keeps_something_loadable_at_each_of_its_steps(tmp_path, monkeypatch):
    save(tmp_path, {"step": 1}, best=False)
    save(tmp_path, {"step": 2}, best=False)
    _flip(tmp_path / LAST)
    replace, moments = Path.replace, []

    def watched(self, target):
        result = replace(self, target)
        moments.append(any(_loads(tmp_path / name) for name in (LAST, PREVIOUS)))
        return result

    monkeypatch.setattr(Path, "replace", watched)
    save(tmp_path, {"step": 3}, best=True)
    assert moments == [True, True, True]


def _loads(path: Path) -> bool:
    try:
        return bool(load(path))
    except SafetyRefusal:
        return False


@pytest.mark.parametrize("size", [0, 5, 8, 39, 40, 41, 500])
def test_a_cut_file_is_refused(tmp_path, size):
    path = save(tmp_path, {"w": torch.zeros(1000)}, best=False)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SafetyRefusal, match=r"E-CKPT-(MAGIC|CHECKSUM)"):
        load(path)


def test_without_hard_links_a_copy_is_kept(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        save(tmp_path, {"step": step}, best=True)
    assert {path.name: load(path)["step"] for path in tmp_path.iterdir()} == {LAST: 2, PREVIOUS: 1, BEST: 2}


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("protocol", "named"), [(None, r"posix\.mkdir"), (2, r"posix\.mkdir"), (4, "cannot be decoded")]
)
def test_a_hostile_file_is_refused_by_name_and_not_run(tmp_path, protocol, named):
    hostile = {"w": _Hostile(tmp_path / "owned")}
    stream = io.BytesIO()
    if protocol is None:
        torch.save(hostile, stream)
    payload = stream.getvalue() or pickle.dumps(hostile, protocol)
    path = tmp_path / LAST
    path.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(SafetyRefusal, match=f"E-CKPT-PICKLE.*{named}") as caught:
        load(path)
    assert caught.value.exit_code == 6
    assert not (tmp_path / "owned").exists()
    path.write_bytes(payload)
    with pytest.raises(SafetyRefusal, match="E-CKPT-MAGIC"):
        load(path)
    with pytest.raises(SafetyRefusal, match="E-CKPT-READ"):
        load(tmp_path / "absent.ckpt")


class _Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [Path("x"), np.float64(1), np.int64(1), np.zeros(2), _Colour.RED, {1}, datetime.date(2020, 1, 1), lambda: 0],
)
def test_what_could_not_be_loaded_is_not_saved_and_its_place_is_named(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]\['b'\] is a "):
        save(tmp_path, {"a": [0, {"b": value}]}, best=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="the key"):
        assert_plain({np.int64(1): 1})


_KILLS = """
import os, signal, sys, time, torch
from pathlib import Path
from medmtl.engine.checkpoint import load, load_latest, save

torch.set_num_threads(1)
folder = Path(sys.argv[1])
for kill in range(24):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        found = load_latest(folder)
        step = found[0]["step"] if found else 0
        while True:
            os.write(theirs, b"%d\\n" % step)
            step += 1
            save(folder, {"step": step, "w": torch.full((30_000,), float(step))}, best=step % 3 == 0)
    os.close(theirs)
    with os.fdopen(ours) as lines:
        reported = [int(next(lines)) for _ in range(4 + kill % 5)]
        time.sleep(kill * 0.0002)  # another moment of the save each time
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reported += [int(line) for line in lines]
    found, path, warnings = load_latest(folder)
    print(*reported, found["step"], path.name, len(warnings))
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):  # each of them is whole
        state = load(folder / name)
        assert torch.equal(state["w"], torch.full((30_000,), float(state["step"])))
"""


def test_killed_at_any_moment_a_whole_checkpoint_is_there(tmp_path):
    ended = subprocess.run([sys.executable, "-c", _KILLS, str(tmp_path)], capture_output=True, text=True, env=ENV)
    assert ended.returncode == 0, ended.stderr
    seen = 0
    for line in ended.stdout.splitlines():
        *reported, found, name, warnings = line.split()
        assert (name, warnings) == (LAST, "0")
        assert int(reported[0]) == seen  # the next process went on from what was found
        assert int(found) in (int(reported[-1]), int(reported[-1]) + 1)  # saved, or saved but not yet reported
        seen = int(found)
    assert len(ended.stdout.splitlines()) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([BEST, LAST, PREVIOUS])


_FULL = """
import resource, sys, torch
from pathlib import Path
from medmtl.engine.checkpoint import save
from medmtl.errors import EnvironmentFailure
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save(Path(sys.argv[1]), {"step": 3, "w": torch.zeros(50_000)}, best=True)
except EnvironmentFailure as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


@pytest.mark.parametrize("limit", [20, 60_000, 199_990])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, limit):
    for step in (1, 2):
        save(tmp_path, {"step": step, "w": torch.zeros(10)}, best=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ended = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path), str(limit)], capture_output=True, text=True, env=ENV
    )
    assert ended.returncode == EnvironmentFailure.exit_code, ended.stderr
    assert "E-DISK" in ended.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_resumed_history_equals_an_uninterrupted_one(tmp_path):
    def run(history, start, stop):
        history.started({"epoch": start // 3, "step": start})
        for step in range(start + 1, stop + 1):
            history.step(step, {"loss": 1 / step, "bad": float("nan")})
            if step % 3 == 0:
                history.epoch(step // 3 - 1, step, {"val/dice": step / 10})

    straight, resumed = History(tmp_path / "a.jsonl"), History(tmp_path / "b.jsonl")
    run(straight, 0, 9)
    straight.finished("FINISHED")
    run(resumed, 0, 5)  # killed here, the last checkpoint was at 4
    with resumed.path.open("a") as stream:
        stream.write('{"epoch": 1, "st')
    run(History(resumed.path), 4, 9)
    assert resumed.path.read_text() == straight.path.read_text()
    assert read_history(straight.path)[:2] == [
        {"epoch": 0, "step": 1, "name": "loss", "value": 1.0},
        {"epoch": 0, "step": 1, "name": "bad", "value": None},
    ]
    run(resumed, 0, 1)  # a run that starts afresh does not inherit rows
    assert len(read_history(resumed.path)) == 2
    assert all(json.loads(line) for line in resumed.path.read_text().splitlines())


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_epoch_loss_and_speed(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    progress = Progress(console)
    progress.started({"epochs": 2, "steps_per_epoch": 2, "images_per_step": 8, "epoch": 1, "step": 3})
    progress.step(4, {"train/loss": 0.25})
    progress.epoch(1, 4, {"train/loss": 0.25})
    progress.finished("KILLED")
    text = console.file.getvalue()
    assert "epoch 2/2" in text
    assert "train/loss 0.25" in text
    assert "images/s" in text
    assert "training ended: KILLED" in text


def test_every_callback_hears_the_end_even_if_one_fails():
    heard = []

    class Failing(Callback):
        def finished(self, status):
            raise RuntimeError("broken")

    class Listening(Callback):
        def finished(self, status):
            heard.append(status)

    with pytest.raises(RuntimeError, match="broken"):
        Callbacks([Failing(), Listening()]).finished("FAILED")
    assert heard == ["FAILED"]


def test_tracking_places_are_absolute_and_the_file_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingConfig().places() == (f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "mlartifacts").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert TrackingConfig().places() == ("http://server:5000", None)
    assert TrackingConfig(artifacts="art").places()[1] == (tmp_path / "art").as_uri()
    for store in ("mlruns", "file:///mlruns"):
        with pytest.raises(UserError, match="E-MLFLOW-URI"):
            TrackingConfig(uri=store).places()
