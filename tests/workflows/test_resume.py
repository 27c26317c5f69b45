"""Training that was killed and resumed is training that was not: bit for bit, and nothing half-written is ever used.

Runs are real processes: one that has everything imported forks a fresh one per job.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
import torch
import yaml
from laws import BALANCERS, MIXED, balancer, batch, objective, refuses
from torch import nn

from medmtl.config import load
from medmtl.data.sampler import EpochOrder
from medmtl.data.synthetic.mitosis import write_mitosis_study
from medmtl.engine import checkpoint
from medmtl.engine.callbacks import Callback, read_history
from medmtl.engine.fit import FitConfig, Trainer
from medmtl.engine.optim import OptimConfig, average
from medmtl.experiment import RunFolder
from medmtl.study import Study

pytestmark = pytest.mark.slow
STUDY = {
    "name": "tiny",
    "data": {"manifest": "set by the fixture"},
    "preprocess": {"window": [32, 32]},
    "augment": {"geometry": {"flip": True, "jitter_px": 3}, "colour": {"gain": 0.1}},
    "encoder": {"name": "test_resnet", "drop_path": 0.2},
    "tasks": {
        "atypical": {"kind": "classification", "classes": ["normal", "atypical"], "pool": {"dropout": 0.3}},
        "vote_fraction": {"kind": "regression", "low": 0, "high": 1},
        "scanner": {"kind": "domain_adversary"},
    },
    "balance": {"kind": "dwa"},
    "loader": {"batch_size": 8, "workers": 0},
    "optim": {"epochs": 3, "ema": 0.8, "learning_rate": 0.003},
    "fit": {"threads": 1, "device": "cpu"},
    "tracking": {"enabled": False},
}
EACH_STEP = "fit.checkpoint_minutes=1e-9"
MIDDLE = 5  # a step within the second of three epochs
TIMES = ("seconds", "images_per_second", "data_wait_share")

DRIVER = """
import json, os, resource, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from medmtl.config import load
from medmtl.engine.fit import Trainer
from medmtl.errors import TrainingInterrupted, UserError
from medmtl.experiment import train
from medmtl.study import Study

def work(job, log):
    os.setpgid(0, 0)
    step, restore = Trainer.step, Trainer.restore

    def stepped(self, group):
        losses = step(self, group)
        if self.progress.step == job["at"]:
            if job["full"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            elif job["group"]:
                os.killpg(0, job["signal"])
            else:
                os.kill(os.getpid(), job["signal"])
        return losses

    def restored(self, state):
        if job["without"] == "step":
            state["progress"]["step"] = 0
        elif job["without"]:
            part = {"balancer": self.objective.balancer, "model": self.objective.model}.get(job["without"])
            part = part or getattr(self, job["without"])
            part.load_state_dict = lambda state: None
        restore(self, state)

    Trainer.step, Trainer.restore = stepped, restored
    study = load(Study, Path(job["study"]), job["overrides"])
    train(study, runs=Path(job["runs"]), fresh=job["fresh"], say=lambda text: print(text, file=log, flush=True))

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        code = 99
        with open(job["log"], "w") as log:
            try:
                work(job, log)
                code = 0
            except TrainingInterrupted as error:
                code = error.exit_code
            except UserError as error:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                print(error, file=log)
                code = error.exit_code
            except BaseException:
                traceback.print_exc(file=log)
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Runner:
    """Runs jobs one after the other, each in a fresh process."""

    def __init__(self, process: subprocess.Popen, study: Path, folder: Path) -> None:
        self.process, self.study, self.log = process, study, folder / "log.txt"

    def __call__(self, runs, *overrides, at=None, signal=SIGKILL, group=False, full=False, without=None, fresh=False):
        """The exit code of one training; ``at`` is the step after which ``signal`` arrives or the disk is full."""
        job = {"study": str(self.study), "runs": str(runs), "overrides": overrides, "log": str(self.log), "at": at,
               "signal": int(signal), "group": group, "full": full, "without": without, "fresh": fresh}  # fmt: skip
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def said(self):
        return self.log.read_text()


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("study")
    manifest = write_mitosis_study(folder / "data", cases=60, groups=12, domains=2, size=40)
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump({**STUDY, "data": {"manifest": str(manifest)}}, sort_keys=False))
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield Runner(process, study, folder)
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def _run(runner, runs, *overrides) -> RunFolder:
    return RunFolder.of(load(Study, runner.study, overrides), runs)


def _result(run: RunFolder):
    """All that must be equal: the bundle's bytes, both checkpoints, and every metric but the clock's."""
    rows = [r for r in read_history(run.history) if not r["name"].endswith(TIMES)]
    files = {path.name: path.read_bytes() for path in sorted(run.bundle.iterdir())}
    states = [checkpoint.load(run.checkpoints / name) for name in (checkpoint.LAST, checkpoint.BEST)]
    return {"bundle": files, "last": states[0], "best": states[1], "history": rows}


def _differences(a, b, where=""):
    """The places where two nested values are not equal bit for bit."""
    if isinstance(a, torch.Tensor):
        same = (
            isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        )
        return [] if same else [where]
    if type(a) is not type(b):
        return [where]
    if isinstance(a, dict):
        keys = list(a) if a.keys() == b.keys() else []
        return [d for key in keys for d in _differences(a[key], b[key], f"{where}.{key}")] if keys or not a else [where]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [where]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in _differences(x, y, f"{where}[{i}]")]
    return [] if a == b or (a != a and b != b) else [where]


@pytest.fixture(scope="module")
def straight(runner, tmp_path_factory):
    """The result of the run that nothing interrupted."""
    runs = tmp_path_factory.mktemp("straight")
    assert runner(runs) == 0, runner.said()
    return runs, _result(_run(runner, runs))


def _state(runner, runs):
    return checkpoint.load(_run(runner, runs).checkpoints / checkpoint.LAST)


def test_the_straight_run_is_worth_interrupting(straight):
    """Everything that a checkpoint must hold is in play: several steps an epoch, weights that moved, an average."""
    last = straight[1]["last"]
    assert last["progress"]["step"] == 9 and last["progress"]["epoch"] == 3 and last["progress"]["finished"]
    assert not _differences(last["balancer"], last["balancer"])
    history = last["balancer"]["history"]
    assert torch.isfinite(history).all() and not torch.equal(history[0], history[1])
    assert _differences(last["model"], {k.removeprefix("module."): v for k, v in last["average"].items()
                                        if k != "n_averaged"})  # fmt: skip
    assert any("running_mean" in key for key in last["model"])


def test_workers_change_no_bit(runner, straight, tmp_path):
    assert runner(tmp_path, "loader.workers=2") == 0
    assert _differences(_result(_run(runner, tmp_path)), straight[1]) == []


@pytest.mark.parametrize(
    ("signal", "code", "at", "before", "after", "group"),
    [
        (SIGTERM, 143, MIDDLE, 0, 2, False),
        (SIGTERM, 143, MIDDLE, 2, 0, True),  # a scheduler signals the whole group, loading processes too
        (SIGINT, 130, MIDDLE, 2, 2, True),
        (SIGTERM, 143, 6, 0, 0, False),  # the last step of an epoch
        (SIGTERM, 143, 1, 0, 0, False),
        (SIGKILL, -SIGKILL, MIDDLE, 0, 0, False),
        (SIGKILL, -SIGKILL, MIDDLE, 2, 2, False),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    runner, straight, tmp_path, signal, code, at, before, after, group
):
    start = (f"loader.workers={before}", *([EACH_STEP] if signal == SIGKILL else []))
    assert runner(tmp_path, *start, at=at, signal=signal, group=group) == code, runner.said()
    saved = _state(runner, tmp_path)["progress"]
    assert saved["step"] == (at - 1 if signal == SIGKILL else at) and not saved["finished"]
    assert not _run(runner, tmp_path).bundle.exists()
    assert runner(tmp_path, f"loader.workers={after}") == 0, runner.said()
    assert "resuming" in runner.said()
    assert _differences(_result(_run(runner, tmp_path)), straight[1]) == []


def test_interrupted_twice_equals_uninterrupted(runner, straight, tmp_path):
    assert runner(tmp_path, at=2, signal=SIGTERM) == 143
    assert runner(tmp_path, EACH_STEP, at=7, signal=SIGKILL) == -SIGKILL
    assert runner(tmp_path) == 0
    assert _differences(_result(_run(runner, tmp_path)), straight[1]) == []


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(runner, straight, tmp_path):
    assert runner(tmp_path, EACH_STEP, at=MIDDLE, signal=SIGKILL) == -SIGKILL
    last = _run(runner, tmp_path).checkpoints / checkpoint.LAST
    content = bytearray(last.read_bytes())
    content[-100] ^= 1
    last.write_bytes(content)
    assert runner(tmp_path) == 0
    assert "checksum mismatch" in runner.said() and f"step {MIDDLE - 2}" in runner.said()
    assert _differences(_result(_run(runner, tmp_path)), straight[1]) == []


def test_a_full_disk_keeps_the_checkpoint_before(runner, straight, tmp_path):
    assert runner(tmp_path, EACH_STEP, at=MIDDLE, full=True) == 5, runner.said()
    assert "E-DISK" in runner.said()
    assert _state(runner, tmp_path)["progress"]["step"] == MIDDLE - 1
    assert runner(tmp_path) == 0
    assert _differences(_result(_run(runner, tmp_path)), straight[1]) == []


@pytest.mark.parametrize("without", ["optimizer", "average", "balancer", "model", "step"])
def test_the_comparison_can_fail(runner, straight, tmp_path, without):
    """Negative control: a resumption that leaves one part out ends elsewhere."""
    assert runner(tmp_path, at=MIDDLE, signal=SIGTERM) == 143
    assert runner(tmp_path, without=without) == 0, runner.said()
    found = _differences(_result(_run(runner, tmp_path)), straight[1])
    part = {"step": "last.progress.step", "average": "last.average"}.get(without, "last.model")
    assert any(place.startswith(f".{part}") for place in found)


def test_a_finished_run_says_so_and_rewrites_nothing(runner, straight):
    runs, _ = straight
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in runs.rglob("*") if path.is_file()}
    assert runner(runs) == 0
    assert "finished" in runner.said()
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in runs.rglob("*") if path.is_file()}
    without_lock = [{k: v for k, v in files.items() if k.name != ".lock"} for files in (before, after)]
    assert without_lock[0] == without_lock[1]


def test_a_bundle_that_is_missing_is_written_again_without_training(runner, straight, tmp_path):
    runs = shutil.copytree(straight[0], tmp_path / "copy")
    shutil.rmtree(_run(runner, runs).bundle)
    assert runner(runs, at=1, signal=SIGKILL) == 0  # not one step is taken
    assert _differences(_result(_run(runner, runs)), straight[1]) == []


def test_a_fresh_run_forgets_the_old_one_even_when_killed_at_once(runner, straight, tmp_path):
    runs = shutil.copytree(straight[0], tmp_path / "copy")
    assert runner(runs, fresh=True, at=1, signal=SIGKILL) == -SIGKILL
    assert not list(_run(runner, runs).checkpoints.glob("*.ckpt"))
    assert runner(runs) == 0 and "resuming" not in runner.said()
    assert _differences(_result(_run(runner, runs)), straight[1]) == []


def test_a_second_trainer_on_the_same_folder_is_refused(runner, tmp_path):
    run = _run(runner, tmp_path)
    with run.locked():
        assert runner(tmp_path) == 2
    assert "E-RUN-LOCK" in runner.said() and not run.checkpoints.exists()


def test_other_data_is_not_continued(runner, tmp_path):
    assert runner(tmp_path, at=MIDDLE, signal=SIGTERM) == 143
    manifest = Path(yaml.safe_load(runner.study.read_text())["data"]["manifest"])
    content = manifest.read_bytes()
    try:
        manifest.write_bytes(content.replace(b"\n", b"\r\n"))
        assert runner(tmp_path) == 2
    finally:
        manifest.write_bytes(content)
    assert "E-RUN-CHANGED" in runner.said() and "manifest_sha256" in runner.said()


# the loop itself, in this process, on tiny batches


class Batches:
    """Stands for a loader: the batches that an order names, some with a label that is not a number."""

    def __init__(self, order, bad=()):
        self.order, self.bad = order, bad

    def __iter__(self):
        for draws in self.order:
            number = draws[0].epoch * self.order.batches() + draws[0].position // self.order.batch_size
            found = batch(seed=number)
            if number in self.bad:
                found = replace(found, targets={**found.targets, "size": torch.full((8,), float("nan"))})
            yield found


class Noted(Callback):
    def __init__(self):
        self.epochs = []

    def epoch(self, epoch, step, metrics):
        self.epochs.append(dict(metrics))


def _trainer(folder, *, bad=(), validate=lambda model: {"size.mae": 1.0}, kind="upgrad", config=None, accumulate=1):
    whole = objective(balancer=balancer(kind, sum(not task.auxiliary for task in MIXED.values())))
    optim = OptimConfig(epochs=3, accumulate=accumulate, learning_rate=0.01)
    order = EpochOrder(32, 8, seed=0)
    return Trainer(
        objective=whole, optimizer=optim.build(whole.model.encoder, list(whole.model.heads.values()), whole.balancer),
        average=average(whole.model, 0.9), loader=Batches(order, bad), order=order, optim=optim,
        config=config or FitConfig(channels_last=False), monitor="size.mae", higher_is_better=False, validate=validate,
        callback=Noted(), folder=folder, seed=0, device=torch.device("cpu"), identity={"config": "x"},
    )  # fmt: skip


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, kind):
    trainer = _trainer(tmp_path, bad=(5,), kind=kind)
    step, seen = trainer.step, []

    def watched(group):
        before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
        losses = step(group)
        after = trainer.objective.state_dict()
        names = [name for name, _ in trainer.objective.named_parameters()]
        seen.append(any(not torch.equal(before[name], after[name]) for name in names))
        return losses

    trainer.step = watched
    progress = trainer.fit()
    assert seen == [number != 5 for number in range(12)]
    assert (progress.step, progress.skipped_steps, progress.bad_steps) == (12, 1, 0)
    state = trainer.state()
    for part in ("model", "average"):
        assert all(torch.isfinite(value).all() for value in state[part].values())
    moments = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    assert all(torch.isfinite(value).all() for value in moments)
    assert torch.isfinite(trainer.objective(batch()).scalar)
    losses = [value for epoch in trainer.callback.epochs for name, value in epoch.items() if name.endswith("loss")]
    assert all(value == value for value in losses) and trainer.callback.epochs[1]["epoch.skipped_steps"] == 1


def test_an_overflow_in_a_forward_pass_leaves_batch_statistics_as_they_were(tmp_path):
    trainer = _trainer(tmp_path)
    model = trainer.objective.model
    model.register_module("seen", nn.BatchNorm1d(1))  # sees the image's mean, as a stem's statistics do
    forward = type(model).forward

    class Watched(type(model)):
        def forward(self, image):
            self.seen(image.mean((1, 2, 3))[:, None])
            return forward(self, image)

    model.__class__ = Watched
    trainer = replace(trainer, average=None)  # collects the statistics anew
    good = batch(seed=0)
    trainer.step([good])
    before = model.seen.running_mean.clone()
    trainer.step([replace(good, image=torch.full_like(good.image, float("inf")))])
    assert trainer.progress.skipped_steps == 1 and torch.equal(model.seen.running_mean, before)
    trainer.step([batch(seed=1)])
    assert not torch.equal(model.seen.running_mean, before) and torch.isfinite(model.seen.running_mean).all()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_many_of_them_in_a_row_stop_and_name_the_task_and_keep_the_checkpoint(tmp_path, accumulate):
    bad = range(6, 12, accumulate)  # with accumulation, the first batch of each step alone
    config = FitConfig(channels_last=False, stop_after_bad_steps=3)
    trainer = _trainer(tmp_path, bad=bad, config=config, accumulate=accumulate)
    message = refuses("E-FIT-NAN", trainer.fit, says="task size")
    assert "case0" in message and "grade" not in message
    state = checkpoint.load(tmp_path / checkpoint.LAST)
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert state["progress"]["skipped_steps"] < 3


def test_validation_changes_no_bit_of_training(tmp_path):
    def greedy(model):
        torch.rand(17), torch.manual_seed(5)
        model.eval()
        return {"size.mae": 1.0}

    states = []
    for name, every, validate in (("a", 1, greedy), ("b", 3, lambda model: {"size.mae": 2.0})):
        trainer = _trainer(
            tmp_path / name, validate=validate, config=FitConfig(channels_last=False, validate_every=every)
        )
        trainer.fit()
        states.append(trainer.state())
    for part in ("model", "average", "optimizer", "balancer"):
        assert _differences(states[0][part], states[1][part]) == []


@pytest.mark.parametrize(
    ("values", "best", "epochs"),
    [
        ([3.0, 2.0, 2.0], (2.0, 1), 3),  # a tie keeps the earlier
        ([float("nan"), 5.0, 6.0], (5.0, 1), 3),  # NaN never is the best
        ([float("nan")] * 3, (None, -1), 2),  # and patience counts it
        ([1.0, 2.0, 3.0], (1.0, 0), 3),
    ],
)
def test_the_best_epoch_is_chosen_by_the_monitor(tmp_path, values, best, epochs):
    given = iter(values)
    config = FitConfig(channels_last=False, patience=2)
    trainer = _trainer(tmp_path, validate=lambda model: {"size.mae": next(given)}, config=config)
    progress = trainer.fit()
    assert (progress.best, progress.best_epoch) == best and progress.epoch == epochs
    assert (tmp_path / checkpoint.BEST).exists() == (best[0] is not None)
    if best[0] is not None:
        assert checkpoint.load(tmp_path / checkpoint.BEST)["progress"]["epoch"] == best[1] + 1


@pytest.mark.parametrize("last", [4.0, float("nan")])
def test_the_last_epoch_is_kept_where_the_best_would_be_noise(tmp_path, last):
    given = iter([1.0, 2.0, last])
    config = FitConfig(channels_last=False, keep="last")
    trainer = _trainer(tmp_path, validate=lambda model: {"size.mae": next(given)}, config=config)
    progress = trainer.fit()
    assert progress.best_epoch == 2 and progress.best == (None if last != last else last)
    assert checkpoint.load(tmp_path / checkpoint.BEST)["progress"]["epoch"] == 3
    with pytest.raises(ValueError, match="keep: last"):
        FitConfig(keep="last", patience=3)


def test_the_loss_of_an_accumulated_step_is_that_of_all_its_batches(tmp_path):
    """A task that only the first batch labels is reported with that batch's loss, not with zero."""
    trainer = _trainer(tmp_path, accumulate=2)
    groups = [batch(seed=1), batch(seed=2, size=[])]
    expected = [objective()(b) for b in groups]
    losses = trainer.step(groups)
    assert losses.present.tolist() == [True] * 4
    torch.testing.assert_close(losses.losses[1], expected[0].losses[1])
    torch.testing.assert_close(losses.losses[0], (expected[0].losses[0] + expected[1].losses[0]) / 2)
    assert asdict(trainer.progress)["step"] == 1
