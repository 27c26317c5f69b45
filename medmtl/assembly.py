"""A study's model, loaders and measures, put together to a trainer."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from medmtl import distributed as dist
from medmtl.balance import GramianConfig
from medmtl.bars import bar
from medmtl.bundle import ModelSpec, example_input, load_bundle
from medmtl.data.loader import CaseDataset, train_loader
from medmtl.data.sampler import EpochOrder
from medmtl.engine.callbacks import Callback
from medmtl.engine.fit import Trainer
from medmtl.engine.objective import Objective
from medmtl.engine.optim import average
from medmtl.errors import UserError
from medmtl.finetune import freeze, same_input, start_from
from medmtl.metrics import describe
from medmtl.models.multitask import MultiTaskModel
from medmtl.predictor import Predictor, channels_last
from medmtl.prepared import Prepared
from medmtl.process import device_named, hold_memory
from medmtl.runs import RunFolder
from medmtl.seeds import counted
from medmtl.study import Study
from medmtl.tasks.base import summary

Say = Callable[[str], None]


def build_trainer(
    prepared: Prepared, run: RunFolder, identity: Mapping[str, Any], callback: Callback, say: Say
) -> Trainer:
    study, spec = prepared.study, prepared.spec
    device = device_named(study.fit.device)
    hold_memory()
    if study.loader.batch_size % dist.world():
        raise UserError(
            "E-CFG-BATCH",
            f"loader.batch_size {study.loader.batch_size} is not a multiple of {dist.world()} processes",
            "it counts the samples of all processes together",
            where="loader.batch_size",
        )
    if len(prepared.split.train) < study.loader.batch_size * study.optim.accumulate:
        raise UserError(
            "E-CFG-BATCH",
            f"{len(prepared.split.train)} training cases do not fill one step of "
            f"{study.loader.batch_size} x {study.optim.accumulate}",
            "lower loader.batch_size",
            where="loader",
        )
    torch.manual_seed(counted("init", study.seed))
    model = _initial(prepared, say)
    frozen = freeze_unreached(model, spec)
    if frozen:
        say(f"{frozen} encoder parameters are read by no head and stay as they are")
    if study.optim.freeze:
        say(f"frozen: {', '.join(study.optim.freeze)} ({freeze(model, study.optim.freeze)} parameters)")
        _check_shared(study, model)
    model = model.to(device)
    if study.fit.channels_last:
        channels_last(model)
    main = [task for task in spec.tasks.values() if not task.auxiliary]
    balancer = study.balance.build(len(main)).to(device)
    scope: Any = getattr(study.balance, "shared", "all")
    objective = Objective(model, spec.tasks, balancer, scope, emphasis=study.emphasis, penalties=study.penalties)
    training = prepared.dataset(prepared.split.train, augment=True)
    validation = prepared.dataset(prepared.split.val)
    if study.loader.cache == "memory":
        for part, dataset in (("train", training), ("val", validation)):
            with bar(f"reading {part}", len(dataset)) as tick:
                dataset.fill(tick)
    order = EpochOrder(
        len(training),
        study.loader.batch_size,
        seed=study.seed,
        weights=study.sampler.weights(prepared.split.train),
        rank=dist.rank(),
        world=dist.world(),
    )
    monitor = study.monitored
    known = validation_metrics(model, prepared, validation, device, limit=4)
    if monitor not in known:
        raise UserError(
            "E-CFG-MONITOR",
            f"{monitor!r} is not measured on validation",
            f"choose one of {', '.join(name for name in known if name.startswith(monitor.partition('.')[0]))}",
            where="fit.monitor",
        )

    def validate(candidate: nn.Module) -> Mapping[str, float]:
        return validation_metrics(candidate, prepared, validation, device)

    return Trainer(
        objective=objective,
        optimizer=study.optim.build(model.encoder, list(model.heads.values()), balancer),
        average=average(model, study.optim.ema),
        loader=train_loader(training, order, workers=study.loader.workers, pin=device.type == "cuda"),
        order=order,
        optim=study.optim,
        config=study.fit,
        monitor=monitor,
        higher_is_better=describe(monitor.partition(".")[2]).higher_is_better,
        validate=validate,
        callback=callback,
        folder=run.checkpoints,
        seed=study.seed,
        device=device,
        identity=dict(identity),
    )


def _initial(prepared: Prepared, say: Say) -> MultiTaskModel:
    """The model at its start: fresh, from the encoder's pretrained file, or in parts from a bundle."""
    init = prepared.study.init
    model = prepared.spec.build(load_weights=init is None or "encoder" not in init.parts)
    if init is not None:
        bundle = load_bundle(init.bundle)
        say(f"{', '.join(init.parts)} start from bundle {bundle.id} ({start_from(model, bundle, init.parts)} numbers)")
        if not same_input(bundle.spec, prepared.spec):
            say("warning: that bundle was trained on images that were preprocessed otherwise")
    return model


def _check_shared(study: Study, model: MultiTaskModel) -> None:
    """Refuse what looks at gradients on shared parameters where none is left to train."""
    if model.shared():
        return
    if isinstance(study.balance, GramianConfig) or study.fit.observe_every:
        raise UserError(
            "E-CFG-FREEZE",
            "the tasks' gradients on the encoder cannot be compared: it is frozen",
            "set balance.kind: fixed and fit.observe_every: 0, or freeze a part of the encoder only",
            where="optim.freeze",
        )


def freeze_unreached(model: MultiTaskModel, spec: ModelSpec) -> int:
    """Freeze parameters that no head's output depends on (finer levels of a pyramid when every head pools).

    DistributedDataParallel waits for every trainable parameter, and weight decay would shrink them for nothing.
    Returns how many numbers were frozen.
    """
    model.eval()
    outputs = model(example_input(spec))
    trainable = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs.values()), trainable, allow_unused=True)
    unreached = [p for p, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    for parameter in unreached:
        parameter.requires_grad_(False)
    model.train()
    return sum(p.numel() for p in unreached)


def validation_metrics(
    model: nn.Module, prepared: Prepared, dataset: CaseDataset, device: torch.device, *, limit: int | None = None
) -> dict[str, float]:
    """``<task>.<metric>`` on (the first ``limit`` cases of) validation, one view, shared out over the ranks.

    In the precision of training: bf16 is much cheaper on a GPU, and what is kept is measured again in fp32.
    """
    study = prepared.study
    predictor = Predictor(model, prepared.spec, device=device, precision=study.fit.precision, views="identity")
    mine = range(dist.rank(), min(len(dataset), limit or len(dataset)), dist.world())
    table = pd.concat(
        dist.gather(predictor.table(dataset, batch_size=study.loader.evaluation_batch_size, indices=mine))
    )
    metrics: dict[str, float] = {}
    for name, task in prepared.spec.tasks.items():
        rows = table[table["task"] == name].sort_values("case_id")
        metrics |= {f"{name}.{metric}": value for metric, value in summary(task, rows).items()}
        if len(prepared.domains) > 1 and rows["target"].notna().any():
            metrics |= _by_domain(name, task, rows)
    return metrics


def _by_domain(name: str, task: Any, rows: pd.DataFrame) -> dict[str, float]:
    """The first headline metric in each domain, ``<task>.<metric>.<domain>``."""
    metric = task.headline[0]
    return {
        f"{name}.{metric}.{domain}": summary(task, part)[metric]
        for domain, part in rows.groupby("domain")
        if domain and part["target"].notna().any()
    }
