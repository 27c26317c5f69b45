"""The training loop: losses -> weights -> one backward, epoch by epoch, resumable after any step."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from medmtl import distributed as dist
from medmtl.balance.gramian import cosines
from medmtl.config import Config
from medmtl.data.batch import Batch
from medmtl.data.sampler import EpochOrder
from medmtl.engine import checkpoint
from medmtl.engine.callbacks import Callback
from medmtl.engine.divergence import diverged, watched
from medmtl.engine.objective import Losses, Objective, step_means
from medmtl.engine.optim import OptimConfig, set_rate
from medmtl.engine.progress import Progress
from medmtl.errors import EnvironmentFailure, TrainingInterrupted
from medmtl.seeds import counted
from medmtl.signals import signals

log = logging.getLogger(__name__)


class FitConfig(Config):
    """How training runs: precision, model selection, early stopping, and what is watched."""

    precision: Literal["fp32", "bf16"] = "fp32"  # of training and of validation within it. What is kept is measured,
    # frozen and evaluated in fp32, as it predicts
    device: str = "auto"  # auto, cpu, cuda
    threads: int | None = Field(
        None, ge=1
    )  # of torch, per process; None: torch's choice. Exact resume needs the same number
    channels_last: bool = True
    monitor: str | None = None  # <task>.<metric> on validation; None: the first task's first headline metric
    keep: Literal["best", "last"] = "best"  # the model of the best validation, or of the last: with few validation
    # cases the best of many epochs is chosen by noise, and two runs compare fairly only at the end of one schedule
    patience: int | None = Field(None, ge=1)  # validations without improvement before stopping; None: never
    validate_every: int = Field(1, ge=1)  # epochs
    observe_every: int = Field(0, ge=0)  # steps between logs of the cosine between the tasks' gradients; 0: never
    checkpoint_minutes: float = Field(10.0, gt=0)  # within an epoch; there is always one at its end
    stop_after_bad_steps: int = Field(10, ge=1)  # consecutive steps with a gradient that is not finite

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep == "last" and self.patience is not None:
            raise ValueError("patience stops at a model that is no longer the best, and keep: last keeps it: leave one")
        return self


@dataclass
class Trainer:
    """All that training needs, and the loop over it. ``validate`` returns metrics ``<task>.<metric>`` of a model."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    loader: "DataLoader[Batch]"
    order: EpochOrder
    optim: OptimConfig
    config: FitConfig
    monitor: str
    higher_is_better: bool
    validate: Callable[[nn.Module], Mapping[str, float]]
    callback: Callback
    folder: Path
    seed: int
    device: torch.device
    identity: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)
    waited_s: float = 0.0  # for data, and stepping: the share is reported per epoch
    stepped_s: float = 0.0

    def __post_init__(self) -> None:
        self.wrapped: nn.Module = self.objective
        if dist.active():  # buffers stay per rank within an epoch and are averaged at its end
            with warnings.catch_warnings():  # its successor exists from torch 2.13 on; we support 2.10
                warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
                self.wrapped = DistributedDataParallel(self.objective, broadcast_buffers=False)
        self.memory_format = torch.channels_last if self.config.channels_last else torch.preserve_format
        self._statistics = [b for b in self.objective.model.buffers() if b.is_floating_point()]
        self._saved = time.monotonic()

    @property
    def steps_per_epoch(self) -> int:
        return self.order.batches() // self.optim.accumulate

    @property
    def model(self) -> nn.Module:
        """The model that is validated and kept: the average where there is one."""
        return self.objective.model if self.average is None else self.average.module

    def fit(self) -> Progress:
        """Train to the end or until early stopping; :class:`TrainingInterrupted` after a signal, the state saved."""
        facts = {
            "epochs": self.optim.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "images_per_step": self.order.batch_size * self.optim.accumulate,
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "monitor": self.monitor,
            "device": str(self.device),
            "world_size": dist.world(),
            "threads": torch.get_num_threads(),
        }
        self.callback.started(facts)
        with signals("step") as caught:
            while not self.progress.finished:
                self._epoch(caught)
        return self.progress

    def _epoch(self, caught: list[int]) -> None:
        p = self.progress
        self.objective.train()
        batches = iter(self.loader_at(p.epoch, p.batch))
        began, first = time.monotonic(), p.batch
        while p.batch + self.optim.accumulate <= self.order.batches():
            waiting = time.monotonic()
            group = [
                batch.to(
                    self.device, memory_format=self.memory_format if batch.image.ndim == 4 else torch.preserve_format
                )
                for batch in islice(batches, self.optim.accumulate)
            ]
            self.waited_s += time.monotonic() - waiting
            self._account(self.step(group), self.optim.accumulate)
            self.stepped_s += time.monotonic() - waiting
            if dist.agree(bool(caught)):
                self._interrupt(caught)
            if dist.agree(time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes):
                self.save(best=False)
        self._end_epoch(time.monotonic() - began, p.batch - first)
        if dist.agree(bool(caught)) and not p.finished:
            self._interrupt(caught)

    def loader_at(self, epoch: int, batch: int) -> "DataLoader[Batch]":
        """The loader, positioned."""
        self.order.at(epoch, batch)
        return self.loader

    def step(self, group: list[Batch]) -> Losses:
        """One optimizer step over ``accumulate`` batches; skipped when the gradient is not finite.

        The batches make the step of one that holds them all: labels are counted over all of them first. Only batch
        statistics and balancers on gradients see each by itself.
        """
        p, total = self.progress, self.optim.epochs * self.steps_per_epoch
        self.rate = set_rate(self.optimizer, self.optim.rate(p.step / total))
        self.objective.model.advance(p.step / total)
        torch.manual_seed(
            counted("step", self.seed, p.step, dist.rank())
        )  # dropout: counted, so nothing can disturb it
        observe = self.config.observe_every > 0 and p.step % self.config.observe_every == 0
        labels = self.objective.labels(group)
        parts: list[Losses] = []
        statistics = [buffer.clone() for buffer in self._statistics]
        for i, batch in enumerate(group):
            last = i == len(group) - 1
            unsynced = (
                self.wrapped.no_sync()
                if isinstance(self.wrapped, DistributedDataParallel) and not last
                else nullcontext()
            )
            with unsynced:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                    parts.append(self.wrapped(batch, observe=observe and last, labels=labels))
                (parts[-1].scalar / len(group)).backward()
        losses = step_means(parts)
        self.objective.forget_absent(losses.present)
        parameters = [q for q in self.objective.parameters() if q.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.optim.clip_norm or float("inf"))
        if torch.isfinite(norm):
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.objective.model)
            p.bad_steps = 0
        else:
            for buffer, before in zip(self._statistics, statistics, strict=True):
                buffer.copy_(before)  # an overflow in a forward pass would stay in batch statistics for ever
            self._bad_step(losses, group)
        self.optimizer.zero_grad(set_to_none=True)
        p.step += 1
        return losses

    def _bad_step(self, losses: Losses, group: list[Batch]) -> None:
        """Skip the update: one would make weights and AdamW's moments NaN for ever."""
        p = self.progress
        p.bad_steps, p.skipped_steps = p.bad_steps + 1, p.skipped_steps + 1
        values = dist.mean(losses.losses.clone()).tolist()  # the culprit may be on another rank
        names = [name for name, loss in zip(self.objective.tasks, values, strict=True) if not isfinite(loss)]
        log.warning(
            "step %d skipped: the gradient is not finite (tasks with a bad loss: %s)",
            p.step,
            ", ".join(names) or "none",
        )
        steps, last = self.steps_per_epoch, p.batch // self.optim.accumulate + 1 == self.steps_per_epoch
        idle = last and p.bad_steps >= steps  # an epoch may have too few steps to reach the limit, and learnt nothing
        if idle or p.bad_steps >= self.config.stop_after_bad_steps:
            ids = [case for batch in group for case in batch.case_ids][:8]
            found = f"{p.bad_steps} steps in a row had a gradient that is not finite"
            if idle:
                found = f"no step of the epoch ({steps}) had a finite gradient"
            what = f"{found} (task {', '.join(names) or 'unknown'}; last cases {', '.join(ids)})"
            raise diverged(what, p, self.optim, self.config.precision)

    def _account(self, losses: Losses, batches: int) -> None:
        p = self.progress
        p.batch += batches
        values = dist.mean(losses.losses.clone()).tolist()
        record = {
            f"train.{name}.loss": value
            for name, value, present in zip(self.objective.tasks, values, losses.present.tolist(), strict=True)
            if present
        }
        if losses.penalties is not None and len(losses.penalties):
            found = dist.mean(losses.penalties.clone()).tolist()
            labels = [f"train.penalty.{penalty.label}" for penalty in self.objective.penalties]
            record |= dict(zip(labels, found, strict=True))
        total = float(dist.mean(losses.scalar.detach().clone()))
        for name, value in {"loss": total, **record}.items():
            p.add(name, value)
        self.callback.step(p.step, {"loss": total, "learning_rate": self.rate, **record, **self._conflicts(losses)})

    def _conflicts(self, losses: Losses) -> dict[str, float]:
        """Cosines between the gradients of tasks that had labels in the step's last batch."""
        if losses.gramian is None:
            return {}
        matrix, names = cosines(losses.gramian), list(self.objective.tasks)
        known = losses.gramian.diagonal() > 0
        return {
            f"cosine.{names[i]}.{names[j]}": float(matrix[i, j])
            for i in range(len(names))
            for j in range(i)
            if known[i] and known[j]
        }

    def _end_epoch(self, seconds: float, batches: int) -> None:
        """Validate, tell and save; ``seconds`` and ``batches`` are of this process, which may have resumed in it."""
        p = self.progress
        self.objective.balancer.end_epoch()
        self._average_buffers()
        metrics = p.means()
        metrics["epoch.seconds"] = seconds
        if batches:  # a process that resumed at the epoch's end has no rate
            metrics["epoch.images_per_second"] = batches * self.order.batch_size / max(seconds, 1e-9)
        metrics |= {
            "epoch.data_wait_share": self.waited_s / max(self.stepped_s, 1e-9),
            "epoch.skipped_steps": p.skipped_steps,
        }
        improved = False
        if (p.epoch + 1) % self.config.validate_every == 0 or p.epoch + 1 == self.optim.epochs:
            validated = self._validated()
            metrics |= {f"val.{name}": value for name, value in validated.items()}
            improved = self._select(validated)
        epoch = p.epoch
        p.next_epoch()
        p.finished = p.epoch >= self.optim.epochs or (
            self.config.patience is not None and p.stale >= self.config.patience
        )
        self.callback.epoch(epoch, p.step, metrics)
        self.waited_s = self.stepped_s = 0.0
        self.save(best=improved)

    def _validated(self) -> Mapping[str, float]:
        """Validation's metrics. A model may diverge in too few steps to be stopped by them, and then has none."""
        with watched(self.model) as bad:
            validated = self.validate(self.model)
        names = sorted(set().union(*dist.gather(bad)))
        if names:
            what = f"the model's outputs on validation are not finite: training has diverged (task {', '.join(names)})"
            raise diverged(what, self.progress, self.optim, self.config.precision)
        return validated

    def _select(self, validated: Mapping[str, float]) -> bool:
        """Whether this validation's model is to be kept: the best so far, or the last."""
        value = validated[self.monitor]
        if self.config.keep == "last":
            self.progress.keep_last(value)
            return True
        return self.progress.keep_best(value, higher_is_better=self.higher_is_better)

    def _average_buffers(self) -> None:
        """Batch statistics averaged over ranks, so that every rank validates and saves the same model."""
        if dist.active():
            models = [self.objective.model, *([self.average.module] if self.average else [])]
            for buffer in (b for model in models for b in model.buffers() if b.is_floating_point()):
                dist.mean(buffer)

    def _interrupt(self, caught: list[int]) -> None:
        self.save(best=False)
        raise TrainingInterrupted(max(dist.gather(caught[0] if caught else 0)))

    def state(self) -> dict[str, Any]:
        """Plain Python and tensors: all that a resumed run needs."""
        return {
            "model": self.objective.model.state_dict(),
            "balancer": self.objective.balancer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "progress": asdict(self.progress),
            "identity": dict(self.identity),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.objective.model.load_state_dict(state["model"])
        self.objective.balancer.load_state_dict(state["balancer"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.progress = Progress(**state["progress"])

    def save(self, *, best: bool) -> None:
        """Write a checkpoint on rank 0. A best one that cannot be written stops training; the one before is intact."""
        self._saved = time.monotonic()
        failure: EnvironmentFailure | None = None
        if dist.rank() == 0:
            try:
                self.callback.saving()
                checkpoint.save(self.folder, self.state(), best=best)
            except EnvironmentFailure as error:
                failure = error
        if dist.agree(failure is not None):
            raise failure or EnvironmentFailure(
                "E-DISK", "rank 0 could not write a checkpoint", "free space and run again"
            )
