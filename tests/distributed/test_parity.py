"""Two processes are one: same parameters after the same steps, whatever is labelled where, under every balancer.

Run by torchrun, this file is what each of the two processes does.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    torch.set_num_threads(1)

from laws import BALANCERS, MIXED, SCORE, WEIGHED, balancer, batch, informed, objective

from medmtl import distributed as dist
from medmtl.bundle import load_bundle
from medmtl.config import validate
from medmtl.data.batch import Batch
from medmtl.data.sampler import EpochOrder
from medmtl.data.synthetic.mitosis import write_mitosis_study
from medmtl.engine import checkpoint
from medmtl.engine.callbacks import Callbacks, read_history
from medmtl.engine.fit import FitConfig, Trainer
from medmtl.engine.optim import OptimConfig, average
from medmtl.experiment import train
from medmtl.study import Study
from medmtl.tasks.emphasis import Emphasis
from medmtl.tasks.penalties import Consistency, FeatureLaplacian, TemporalSmoothness

pytestmark = pytest.mark.slow  # starting two processes takes most of it
STEPS, SAMPLES = 3, 8
STUDY = {
    "name": "two",
    "preprocess": {"window": [32, 32]},
    "augment": {"geometry": {"flip": True, "jitter_px": 3}},
    "encoder": {"name": "test_resnet", "norm": "group"},
    "tasks": {
        "atypical": {"kind": "classification", "classes": ["normal", "atypical"]},
        "vote_fraction": {"kind": "regression", "low": 0, "high": 1},
        "scanner": {"kind": "domain_adversary"},
    },
    "balance": {"kind": "upgrad"},
    "loader": {"batch_size": 8, "workers": 1},
    "optim": {"epochs": 2, "learning_rate": 1e-4},
    "tracking": {"enabled": False},
}
LABELS = {
    "everywhere": {},
    "disjoint": {"grade": [0, 2, 4, 6], "size": [1, 3, 5, 7], "mask": [0, 1], "domain": [1, 2, 3]},
    "absent": {"grade": [0, 2, 4], "size": [], "mask": [5, 7], "domain": []},
}  # rank r has the samples r, r + 2, ...: with "disjoint", grade lives on rank 0 alone and size on rank 1
UNEVEN = ("disjoint", "absent")  # of the batches of one step
CASES = {
    f"{kind}-{labels}-{accumulate}": (kind, labels, accumulate)
    for kind in BALANCERS
    for labels, accumulate in (("everywhere", 1), ("disjoint", 1), ("disjoint", 2), ("absent", 1), ("uneven", 2))
} | {
    f"fixed-weighed-{labels}-{accumulate}": ("fixed", labels, accumulate, WEIGHED)
    for labels, accumulate in (("everywhere", 1), ("disjoint", 2), ("absent", 1), ("uneven", 2))
}
ITEMS = {
    "everywhere": {},
    "disjoint": {"q1": [0, 2, 4, 6], "q2": [1, 3, 5, 7], "q3": [0, 1], "total": [5], "later": [2, 3]},
    "absent": {"q1": [0, 2, 4], "q2": [], "q3": [5], "total": [], "later": [1]},
}
BESIDE = {
    "emphasis": Emphasis(items=("q1", "q2", "q3"), key=("q2",), by="group", groups={"a": "moderate", "b": "strong"}),
    "penalties": (
        Consistency(total="total", weight=0.5),
        TemporalSmoothness(tasks=("q2", "total", "later"), weight=0.3),
        FeatureLaplacian(tasks=("q2", "total", "later"), weight=0.5, above=0.2),
    ),
}
CASES |= {
    f"{kind}-score-{labels}-{accumulate}": (kind, labels, accumulate, SCORE)
    for kind in ("fixed", "upgrad")
    for labels, accumulate in (("everywhere", 1), ("disjoint", 2), ("absent", 1))
}


def _part(batch):
    """The samples of this rank."""
    mine = slice(dist.rank(), None, dist.world())
    return replace(
        batch,
        image=batch.image[mine].double(),
        targets={name: value[mine] for name, value in batch.targets.items()},
        labelled={name: value[mine] for name, value in batch.labelled.items()},
        domain=batch.domain[mine],
        case_ids=batch.case_ids[mine],
        weights={column: value[mine] for column, value in batch.weights.items()},
        covariates=None if batch.covariates is None else batch.covariates[mine].double(),
        stratum=None if batch.stratum is None else batch.stratum[mine],
    )


def _together(group):
    """Several batches as one."""

    def joined(name):
        return {key: torch.cat([getattr(b, name)[key] for b in group]) for key in getattr(group[0], name)}

    image, domain = (torch.cat([getattr(b, name) for b in group]) for name in ("image", "domain"))
    ids = tuple(case for b in group for case in b.case_ids)
    return Batch(image, joined("targets"), joined("labelled"), domain, ids, joined("weights"))


def run(kind, labels, accumulate, tasks=MIXED, *, together=False):
    """Parameters, buffers and losses after some steps of the real training loop, in double precision.

    A score has covariates, groups with an emphasis of their own, and penalties. ``together`` makes one batch of those
    that would be accumulated.
    """
    score = tasks is SCORE
    main = sum(not task.auxiliary for task in tasks.values())
    whole = objective(tasks, balancer(kind, main), **(BESIDE if score else {})).double()
    if score:
        whole.model.fuse(list(tasks), torch.zeros(3, dtype=torch.float64))
    parameters = [p for p in whole.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=0.01)
    optimizer.param_groups[0]["initial_lr"] = 0.2
    trainer = Trainer(
        objective=whole,
        optimizer=optimizer,
        average=average(whole.model, 0.5),
        loader=None,
        order=EpochOrder(
            STEPS * SAMPLES * accumulate,
            SAMPLES * (accumulate if together else 1),
            seed=0,
            rank=dist.rank(),
            world=dist.world(),
        ),
        optim=OptimConfig(epochs=1, warmup=0, accumulate=1 if together else accumulate, clip_norm=1.0),
        config=FitConfig(observe_every=2, channels_last=False),
        monitor="grade.auroc",
        higher_is_better=True,
        validate=dict,
        callback=Callbacks(),
        folder=Path(os.devnull),
        seed=0,
        device=torch.device("cpu"),
        identity={},
    )
    for step in range(STEPS):
        known = [
            (ITEMS if score else LABELS)[name] for name in (UNEVEN if labels == "uneven" else [labels] * accumulate)
        ]
        group = [batch(tasks, SAMPLES, seed=10 * step + i, **known[i]) for i in range(accumulate)]
        group = [_together(group)] if together else group
        group = [informed(b, seed=step) if score else b for b in group]
        trainer._account(trainer.step([_part(b) for b in group]), len(group))
        if step == 0:
            whole.balancer.end_epoch()  # so that dynamic weights have a history
    whole.balancer.end_epoch()
    sums = {f"loss.{name}": torch.tensor(value) for name, value in trainer.progress.sums.items()}
    return {**whole.state_dict(), **{f"average.{k}": v for k, v in trainer.average.state_dict().items()}, **sums}


def study(out):
    """A small study from files, trained by the command's own function; the same run folder on every rank."""
    manifest = out / "data" / "manifest.csv"
    if not manifest.exists():
        write_mitosis_study(out / "data", cases=60, groups=12, domains=2, size=40)
    tree = {**STUDY, "data": {"manifest": str(manifest)}}
    return train(validate(Study, tree, where="test"), runs=out / f"runs-{dist.world()}", say=lambda text: None)


def work(out):
    """All cases on this rank, a whole study, and what the helpers of ``medmtl.distributed`` answer."""
    with dist.process_group():
        for name, case in CASES.items():
            torch.save(run(*case), out / f"{name}-{dist.rank()}.pt")
        study(out)
        rank = dist.rank()
        answers = {
            "world": dist.world(),
            "total": dist.total(torch.tensor([1.0, float(rank)])).tolist(),
            "mean": dist.mean(torch.tensor([float(rank)])).tolist(),
            "from_rank_0": dist.from_rank_0(torch.tensor([rank + 5])).tolist(),
            "agree": [dist.agree(rank == 1), dist.agree(False)],
            "gather": dist.gather({"rank": rank}),
            "share": dist.share(f"from {rank}"),
        }
        torch.save(answers, out / f"answers-{rank}.pt")
    assert not dist.active()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    sys.exit()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes wrote to, after one process trained the same study there."""
    out = tmp_path_factory.mktemp("two")
    study(out)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def _read(folder, name, rank):
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(two, name):
    first, second, single = _read(two, name, 0), _read(two, name, 1), run(*CASES[name])
    assert first.keys() == single.keys()
    for key, value in single.items():
        for other, tolerance, who in ((second[key], 0, "the ranks differ"), (value, 1e-6, "two are not one")):
            torch.testing.assert_close(
                first[key], other, atol=tolerance, rtol=tolerance, equal_nan=True,
                msg=lambda text, who=who, key=key: f"{who} in {key}: {text}",
            )  # fmt: skip


@pytest.mark.parametrize("name", ["fixed-uneven-2", "uncertainty-uneven-2", "dwa-uneven-2", "fixed-weighed-uneven-2"])
def test_batches_accumulated_on_two_processes_are_one_batch(two, name):
    """A task's labels are counted over all batches of a step on all ranks: how they are dealt changes nothing."""
    found, single = _read(two, name, 0), run(*CASES[name], together=True)
    assert found.keys() == single.keys()
    for key, value in single.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-6, equal_nan=True, msg=lambda t, k=key: k + t)


def test_a_study_trains_alike_on_two_processes(two):
    """From files to a bundle: the same images in every step, hence the same losses; dropout there is none."""
    runs = [next((two / f"runs-{world}").iterdir()) for world in (1, 2)]
    histories = [{(r["step"], r["name"]): r["value"] for r in read_history(run / "history.jsonl")
                  if r["name"].startswith(("train.", "val.", "loss"))} for run in runs]  # fmt: skip
    assert histories[0].keys() == histories[1].keys() and len({step for step, _ in histories[0]}) == 6
    for key, value in histories[0].items():
        if value is not None and "loss" in key[1]:
            assert histories[1][key] == pytest.approx(value, rel=2e-3, abs=2e-4), key
    weights = [load_bundle(run / "bundle").model.state_dict() for run in runs]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=2e-3, rtol=0)
    assert checkpoint.load(runs[1] / "checkpoints" / checkpoint.LAST)["identity"]["world_size"] == 2


def test_the_comparison_can_fail():
    """Parameters move, and differ between balancers and label patterns by far more than the tolerance."""
    start = objective().double().state_dict()
    kinds = ("fixed", MIXED), ("upgrad", MIXED), ("fixed", WEIGHED)
    found = [*(run(kind, "everywhere", 1, tasks) for kind, tasks in kinds), run("fixed", "disjoint", 1)]
    key = "model.encoder.first.0.weight"
    states = [start[key], *(state[key] for state in found)]
    for i in range(len(states)):
        assert all((states[i] - states[j]).abs().max() > 1e-4 for j in range(i))
    score, bare = run("fixed", "everywhere", 1, SCORE), run("fixed", "everywhere", 1, dict(SCORE))
    assert (score[key] - bare[key]).abs().max() > 1e-4  # covariates, groups and penalties do something


def test_the_helpers_answer_alike_on_both_ranks(two):
    for rank in (0, 1):
        assert _read(two, "answers", rank) == {
            "world": 2,
            "total": [2.0, 1.0],
            "mean": [0.5],
            "from_rank_0": [5],
            "agree": [True, False],
            "gather": [{"rank": 0}, {"rank": 1}],
            "share": "from 0",
        }


def test_alone_the_helpers_answer_for_one():
    with dist.process_group():
        assert (dist.rank(), dist.world(), dist.active()) == (0, 1, False)
    assert dist.mean(torch.ones(1)).item() == dist.total(torch.ones(1)).item() == 1
    assert dist.agree(True) and not dist.agree(False)
    assert dist.gather(3) == [3] and dist.share(3) == 3
