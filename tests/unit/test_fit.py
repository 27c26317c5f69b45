"""A step of training: accumulated batches are one batch, half precision stops at the outputs, divergence is named."""

import copy
import os
from dataclasses import replace
from signal import SIGTERM
from types import SimpleNamespace

import pytest
import torch
from laws import BALANCERS, MIXED, SCORE, WEIGHED, balancer, batch, chosen, informed, objective, refuses
from torch import nn

from medmtl.data.batch import Batch
from medmtl.data.sampler import EpochOrder
from medmtl.engine import checkpoint
from medmtl.engine.callbacks import Callback, Callbacks
from medmtl.engine.divergence import watched
from medmtl.engine.fit import FitConfig, Trainer
from medmtl.engine.optim import OptimConfig, average
from medmtl.errors import TrainingInterrupted
from medmtl.tasks.emphasis import Emphasis

ON_LOSSES = ("fixed", "uncertainty", "dwa")
ON_GRADIENTS = ("upgrad", "pcgrad", "mgda", "aligned_mtl", "cagrad")
SAMPLES, BATCHES = 8, 3
DISJOINT = {"grade": [0, 1, 3], "size": [4, 6, 7], "mask": [0], "domain": [1, 2, 7]}  # of batches of 4, 2 or 1
ITEMS = {"q1": [0, 1], "q2": [5, 6, 7], "q3": [2], "total": [0, 4], "later": [3]}
BY_GROUP = Emphasis(
    items=("q1", "q2", "q3"), key=("q2",), by="group", groups={"a": "moderate", "b": "strong"}
)  # fmt: skip


class Batches:
    """Stands for a loader: random batches, each with its own labels."""

    def __init__(self, order):
        self.order = order

    def __iter__(self):
        return (batch(seed=draws[0].position, **DISJOINT) for draws in self.order)


def _trainer(
    folder=None, *, tasks=MIXED, kind="fixed", validate=lambda model: {"size.mae": 1.0}, ema=None, beside=None,
    fit=None, **optim,
):  # fmt: skip
    built = balancer(kind, sum(not task.auxiliary for task in tasks.values()))
    whole = objective(tasks, built, **(beside or {}))
    settings = OptimConfig(**{"epochs": 2, "warmup": 0, "final": 1, "clip_norm": None, **optim})
    order = EpochOrder(SAMPLES * BATCHES * settings.accumulate, SAMPLES, seed=0)
    return Trainer(
        objective=whole, optimizer=settings.build(whole.model.encoder, list(whole.model.heads.values()), built),
        average=average(whole.model, ema), loader=Batches(order), order=order, optim=settings,
        config=FitConfig(**{"channels_last": False, **(fit or {})}), monitor="size.mae", higher_is_better=False,
        validate=validate, callback=Callbacks(), folder=folder, seed=0, device=torch.device("cpu"), identity={},
    )  # fmt: skip


def _step(trainer, group):
    """(losses, the gradients that the optimizer is given) of one step."""
    found, take = {}, trainer.optimizer.step

    def step():
        found.update({n: p.grad.clone() for n, p in trainer.objective.named_parameters() if p.grad is not None})
        return take()

    trainer.optimizer.step = step
    losses = trainer.step(group)
    trainer.optimizer.step = take
    return losses, found


def _cut(whole: Batch, parts: int) -> list[Batch]:
    each = SAMPLES // parts
    return [chosen(whole, list(range(i * each, (i + 1) * each))) for i in range(parts)]


# accumulation


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("tasks", [MIXED, WEIGHED, SCORE], ids=["plain", "weighed", "score"])
@pytest.mark.parametrize("kind", ON_LOSSES)
def test_accumulated_batches_are_one_batch_whatever_is_labelled_where(kind, tasks, parts):
    beside = {"emphasis": BY_GROUP} if tasks is SCORE else None
    whole = batch(tasks, SAMPLES, **(ITEMS if tasks is SCORE else DISJOINT))
    whole = replace(informed(whole), covariates=None) if tasks is SCORE else whole
    found = []
    for accumulate in (1, parts):
        trainer = _trainer(tasks=tasks, kind=kind, accumulate=accumulate, beside=beside)
        losses, gradients = _step(trainer, _cut(whole, accumulate))
        trainer.objective.balancer.end_epoch()
        found.append((losses, gradients, trainer.objective.balancer.state_dict()))
    (one, first, state), (many, second, other) = found
    assert first.keys() == second.keys() and one.present.tolist() == many.present.tolist()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda t, n=name: f"{n}: {t}")
    torch.testing.assert_close(many.losses, one.losses)
    torch.testing.assert_close(many.scalar, one.scalar)
    torch.testing.assert_close(other, state, equal_nan=True, atol=1e-6, rtol=1e-6)  # the history of dynamic weights


@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize("alone", MIXED)
def test_under_any_balancer_a_batch_without_a_label_adds_nothing(kind, alone):
    """One main task has labels, in one batch of four: nothing is to be balanced, and it counts in full."""
    column = MIXED[alone].target or alone
    labelled = {name: [] for name in ("grade", "size", "mask", "domain")} | {column: [2, 3]}
    whole = batch(MIXED, SAMPLES, **labelled)
    _, expected = _step(_trainer(), [whole])
    _, found = _step(_trainer(kind=kind, accumulate=4), _cut(whole, 4))
    factor = 0.5 if kind == "uncertainty" and not MIXED[alone].auxiliary else 1.0  # exp(-s) / 2 at s = 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], factor * gradient, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("kind", ON_LOSSES)
def test_with_all_labels_accumulation_is_bit_for_bit_the_mean_of_the_batches(kind):
    parts = _cut(batch(MIXED, SAMPLES), 2)
    trainer = _trainer(kind=kind, accumulate=2)
    bare = copy.deepcopy(trainer.objective)
    _, found = _step(trainer, parts)
    for part in parts:
        (bare(part).scalar / 2).backward()
    for name, parameter in bare.named_parameters():
        assert torch.equal(found[name], parameter.grad), name


def test_only_tasks_with_labels_in_the_observed_batch_have_cosines():
    trainer = _trainer(accumulate=2, fit={"observe_every": 1})
    losses = trainer.step(_cut(batch(MIXED, SAMPLES, **{**DISJOINT, "mask": [0, 5]}), 2))
    assert losses.present.all()
    assert set(trainer._conflicts(losses)) == {"cosine.mask.size", "cosine.site.size", "cosine.site.mask"}


# half precision


@pytest.mark.parametrize("kind", BALANCERS)
def test_half_precision_trains_as_single_does_under_any_balancer(kind):
    weights, tracks = [], []
    for precision in ("fp32", "bf16"):
        trainer = _trainer(kind=kind, learning_rate=1e-3, fit={"precision": precision, "observe_every": 1})
        seen = []
        for i in range(3):
            _, gradients = _step(trainer, [batch(seed=i)])
            seen.append(torch.stack([gradients[f"model.heads.{n}.affine.weight"].norm() for n in ("grade", "size")]))
        weights.append(torch.cat([p.detach().flatten() for p in trainer.objective.parameters()]))
        tracks.append(torch.stack(seen))
    start = torch.cat([p.detach().flatten() for p in objective(balancer=balancer(kind, 3)).parameters()])
    moved = (weights[0] - start).norm()
    assert 0 < (weights[1] - weights[0]).norm() < 0.35 * moved  # Adam takes the sign of gradients however small
    torch.testing.assert_close(tracks[1], tracks[0], rtol=0.08, atol=0.02)


@pytest.mark.parametrize("kind", ON_GRADIENTS)
def test_gramians_have_single_precision_beside_outputs_of_half(kind):
    trainer = _trainer(kind=kind, fit={"precision": "bf16", "observe_every": 1})
    losses = trainer.step([batch()])
    for G in (losses.gramian, trainer.objective.balancer.last):
        assert G.dtype == torch.float32
        assert not torch.equal(G.bfloat16().float(), G), "it went through 8 bits"


# what a step takes from torch, by hand


@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_clipping_is_of_the_norm_of_all_gradients(limit):
    whole = batch(MIXED, SAMPLES, **DISJOINT)
    _, plain = _step(_trainer(), [whole])
    _, clipped = _step(_trainer(clip_norm=limit), [whole])
    norm = torch.cat([gradient.double().flatten() for gradient in plain.values()]).norm()
    assert 0.05 < norm < 1e6
    for name, gradient in plain.items():
        torch.testing.assert_close(clipped[name], gradient * min(1.0, limit / float(norm)), rtol=1e-4, atol=1e-8)
    parameters = list(copy.deepcopy(_trainer().objective).parameters())
    for parameter, gradient in zip(parameters, plain.values(), strict=True):
        parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_(parameters, limit)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, clipped.values(), strict=True))


def test_the_average_follows_every_step_but_those_that_are_skipped():
    trainer = _trainer(ema=0.75)
    nan = torch.full((SAMPLES,), float("nan"))
    expected = None
    for i in range(5):
        good = batch(seed=i)
        trainer.step([replace(good, targets={**good.targets, "size": nan}) if i == 2 else good])
        now = {name: value.detach().clone() for name, value in trainer.objective.model.named_parameters()}
        if i != 2:
            before = expected or now
            expected = {name: 0.75 * before[name] + 0.25 * now[name] for name in now}
        for name, value in trainer.model.named_parameters():
            torch.testing.assert_close(value, expected[name])
    assert trainer.progress.skipped_steps == 1 and trainer.model is trainer.average.module
    assert not torch.allclose(now["encoder.first.0.weight"], expected["encoder.first.0.weight"], atol=1e-5)


def test_channels_last_is_a_layout_and_no_other_result(tmp_path):
    layouts, weights = [], []
    for last in (False, True):
        trainer = _trainer(tmp_path / str(last), fit={"channels_last": last}, epochs=1)
        seen = []
        trainer.objective.model.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)
            )
        )  # fmt: skip
        trainer.fit()
        layouts.append(set(seen))
        weights.append(dict(trainer.objective.model.named_parameters()))
    assert layouts == [{False}, {True}]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4)


# the clock


class Noted(Callback):
    """What epochs told."""

    def __init__(self):
        self.epochs = {}

    def epoch(self, epoch, step, metrics):
        self.epochs[epoch] = dict(metrics)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [1, BATCHES + 1, BATCHES + 2, 2 * BATCHES])
def test_images_per_second_are_those_of_the_process_that_took_the_seconds(tmp_path, monkeypatch, at, accumulate):
    """A step takes two seconds, so the rate is the same whatever the epoch's share that was left after a kill."""
    clock, noted = [0.0], Noted()
    monkeypatch.setattr("medmtl.engine.fit.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def timed(trainer, at=None):
        step = trainer.step

        def stepped(group):
            clock[0] += 2.0
            losses = step(group)
            if trainer.progress.step == at:
                os.kill(os.getpid(), SIGTERM)
            return losses

        trainer.step, trainer.callback = stepped, noted
        return trainer

    with pytest.raises(TrainingInterrupted):
        timed(_trainer(tmp_path, accumulate=accumulate), at).fit()
    resumed = timed(_trainer(tmp_path, accumulate=accumulate))
    resumed.restore(checkpoint.load(tmp_path / checkpoint.LAST))
    resumed.fit()
    assert set(noted.epochs) == {0, 1}
    for epoch, metrics in noted.epochs.items():
        steps = BATCHES - at % BATCHES if at // BATCHES == epoch else BATCHES
        if at == BATCHES * (epoch + 1):  # nothing but its end was left
            assert metrics["epoch.seconds"] == 0 and "epoch.images_per_second" not in metrics
        else:
            assert metrics["epoch.seconds"] == 2 * steps
            assert metrics["epoch.images_per_second"] == SAMPLES * accumulate / 2


# divergence


def _spoilt(trainer, bad):
    """The trainer, its steps of these numbers with a label that is not a number."""
    step = trainer.step

    def stepped(group):
        if trainer.progress.step in bad:
            group = [replace(b, targets={**b.targets, "size": torch.full((SAMPLES,), float("nan"))}) for b in group]
        return step(group)

    trainer.step = stepped
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_of_skipped_steps_alone_ends_the_training(tmp_path, epoch, accumulate):
    """However few its steps are: nothing was learnt, and there would be a bundle of it."""
    bad = range(epoch * BATCHES, (epoch + 1) * BATCHES)
    trainer = _spoilt(_trainer(tmp_path, accumulate=accumulate, validate=_measured), bad)
    message = refuses("E-FIT-NAN", trainer.fit, says="no step of the epoch (3)")
    assert "task size" in message and "case0" in message and f"epoch {epoch + 1}, after" in message
    assert FitConfig().stop_after_bad_steps > BATCHES
    assert (tmp_path / checkpoint.LAST).exists() == (epoch == 1)
    assert ("the model of epoch 1 is kept" in message) == (epoch == 1)


@pytest.mark.parametrize("bad", [(0, 1), (1, 2), (1, 2, 3, 4), (0, 2, 3, 5)])
def test_an_epoch_with_one_good_step_goes_on(tmp_path, bad):
    progress = _spoilt(_trainer(tmp_path), bad).fit()
    assert progress.finished and progress.skipped_steps == len(bad)


def test_a_skipped_epoch_is_noticed_by_the_process_that_resumes_in_it(tmp_path):
    first = _spoilt(_trainer(tmp_path), range(99))
    group = [batch()]
    first.step(group)
    first.progress.batch = 1
    first.save(best=False)
    second = _spoilt(_trainer(tmp_path), range(99))
    second.restore(checkpoint.load(tmp_path / checkpoint.LAST))
    refuses("E-FIT-NAN", second.fit, says="no step of the epoch (3)")
    assert second.progress.step == BATCHES - 1


def _measured(model):
    """A validation that cannot do without numbers, as metrics cannot."""
    with torch.inference_mode():
        outputs = model.eval()(batch(seed=9).image)
    model.train()
    assert all(torch.isfinite(output).all() for output in outputs.values()), "a metric was given a missing prediction"
    return {"size.mae": 1.0}


def test_a_model_that_diverges_too_late_to_be_stopped_by_its_steps_is_stopped_at_validation(tmp_path):
    trainer = _trainer(tmp_path, learning_rate=1e38, validate=_measured)
    message = refuses("E-FIT-NAN", trainer.fit, says="training has diverged")
    assert trainer.progress.bad_steps < FitConfig().stop_after_bad_steps
    for part in ("size", "epoch 1, after 3 steps", "optim.learning_rate (it is 1e+38)", "set optim.clip_norm: 1",
                 "no epoch before"):  # fmt: skip
        assert part in message, message
    assert not (tmp_path / checkpoint.LAST).exists()


def test_it_names_the_checkpoint_that_is_good(tmp_path):
    trainer = _trainer(tmp_path, clip_norm=1.0, fit={"precision": "bf16"}, validate=_measured)
    step = trainer.step

    def jump(group):
        losses = step(group)
        if trainer.progress.step == 2 * BATCHES:  # the last step of the second epoch
            nn.init.constant_(trainer.objective.model.heads["size"].affine.bias, float("nan"))
        return losses

    trainer.step = jump
    message = refuses("E-FIT-NAN", trainer.fit, says="(task size)")
    for part in ("epoch 2, after 6 steps", "fit.precision: fp32", "the model of epoch 1 is kept in best.ckpt"):
        assert part in message, message
    assert "clip_norm" not in message
    state = checkpoint.load(tmp_path / checkpoint.BEST)
    assert state["progress"]["epoch"] == 1 and all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_rank_whose_cases_are_well_stops_with_the_one_whose_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("medmtl.distributed.gather", lambda value: [value, {"mask"}])
    refuses("E-FIT-NAN", _trainer(tmp_path, validate=_measured).fit, says="(task mask)")


def test_watching_ends_with_the_block_and_touches_nothing_that_is_finite():
    model = objective().model.eval()
    image = batch().image
    before = model(image)
    with watched(model) as bad:
        seen = model(image)
        assert not bad and all(torch.equal(seen[name], before[name]) for name in before)
        nn.init.constant_(model.heads["grade"].affine.bias, float("inf"))
        assert (model(image)["grade"] == 0).all() and bad == {"grade"}
    assert torch.isinf(model(image)["grade"]).all()
