"""What a training step costs against a loop written by hand: same network, losses and batch, alternating in one run.

Prints for each balancer the median of the paired ratios to the loop by hand (1.00 = no overhead; Gramian balancers need
one more backward pass per task), and the share of time that the real loader keeps the model waiting. Nothing is
asserted about seconds.

    python benchmarks/step_overhead.py [--rounds 20] [--workers 1]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from medmtl.assembly import build_trainer
from medmtl.config import validate
from medmtl.data.synthetic.mitosis import PHASES, write_mitosis_study
from medmtl.engine.callbacks import Callbacks
from medmtl.engine.fit import Trainer
from medmtl.models.encoder import TimmConfig
from medmtl.predictor import channels_last
from medmtl.prepared import prepare
from medmtl.runs import RunFolder
from medmtl.study import Study


def study(manifest: Path, encoder: str, balance: str, workers: int) -> Study:
    """Three tasks with partial labels on 64-px windows."""
    tree = {
        "name": "benchmark",
        "data": {"manifest": str(manifest)},
        "preprocess": {"window": [64, 64]},
        "augment": {
            "geometry": {"flip": True, "rotate90": True, "jitter_px": 5},
            "colour": {"gain": 0.1, "offset": 0.05},
        },
        "encoder": {"name": encoder, "drop_path": 0.1},
        "tasks": {
            "atypical": {"kind": "classification", "classes": ["normal", "atypical"]},
            "phase": {"kind": "classification", "target": "phase.expert1", "classes": list(PHASES)},
            "vote_fraction": {"kind": "regression", "low": 0, "high": 1},
        },
        "balance": {"kind": balance},
        "loader": {"batch_size": 64, "workers": workers},
        "tracking": {"enabled": False},
    }
    return validate(Study, tree, where="benchmark")


def trainer(configuration: Study, folder: Path) -> Trainer:
    return build_trainer(prepare(configuration), RunFolder(folder), {}, Callbacks(), lambda message: None)


def by_hand() -> Callable[[list], None]:
    """The loop of a tutorial: encoder, three linear heads, masked losses, one backward, clipping, AdamW."""
    torch.manual_seed(0)
    encoder = channels_last(TimmConfig(name=ENCODER, drop_path=0.1).build(3).net)
    width = encoder.feature_info.channels()[-1]
    heads = torch.nn.ModuleList([torch.nn.Linear(width, k) for k in (2, 8, 1)])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def mean(loss: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, loss, 0.0).sum() / mask.sum().clamp(min=1)

    def step(group: list) -> None:
        (batch,) = group
        pooled = encoder(batch.image)[-1].mean((2, 3))
        a, b, c = (head(pooled) for head in heads)
        y, m = batch.targets, batch.labelled
        loss = (
            mean(F.cross_entropy(a, y["atypical"], reduction="none"), m["atypical"])
            + mean(F.cross_entropy(b, y["phase.expert1"], reduction="none"), m["phase.expert1"])
            + mean(F.mse_loss(c[:, 0], y["vote_fraction"], reduction="none"), m["vote_fraction"])
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[list], object], group: list) -> float:
    began = time.perf_counter()
    step(group)
    return time.perf_counter() - began


ENCODER = "efficientnet_b0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        manifest = write_mitosis_study(root / "study", cases=320, groups=40)
        fixed = trainer(study(manifest, ENCODER, "fixed", 0), root / "fixed")
        group = [next(iter(fixed.loader_at(0, 0))).to("cpu", memory_format=torch.channels_last)]
        contenders: dict[str, Callable[[list], object]] = {"by hand": by_hand(), "fixed": fixed.step}
        for kind in ("uncertainty", "upgrad", "pcgrad", "cagrad"):
            contenders[kind] = trainer(study(manifest, ENCODER, kind, 0), root / kind).step
        fixed.objective.train()
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for round_number in range(options.rounds + 2):
            for name, step in contenders.items():
                taken = seconds(step, group)
                if round_number >= 2:  # the first steps allocate
                    times[name].append(taken)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"{ENCODER}, 64 px, batch 64, {torch.get_num_threads()} threads, {options.rounds} alternating rounds")
        for name, median in medians.items():
            paired = statistics.median(a / b for a, b in zip(times[name], times["by hand"], strict=True))
            print(f"  {name:12s} {1e3 * median:8.1f} ms   {paired:5.2f} x by hand")
        whole = trainer(study(manifest, ENCODER, "fixed", options.workers), root / "whole")
        whole.objective.train()
        waited = stepped = 0.0
        for epoch in range(3):
            batches = iter(whole.loader_at(epoch, 0))
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                ready = time.perf_counter()
                whole.step([batch.to("cpu", memory_format=torch.channels_last)])
                waited, stepped = waited + ready - began, stepped + time.perf_counter() - ready
        print(f"  waiting for data, {options.workers} worker(s): {100 * waited / (waited + stepped):.1f} % of the time")


if __name__ == "__main__":
    main()
