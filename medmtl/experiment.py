"""A study from its data to a bundle: build, resume, train, choose on validation, save."""

import logging
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from medmtl import __version__
from medmtl import distributed as dist
from medmtl.balance import GramianConfig
from medmtl.bars import bar
from medmtl.bundle import ModelSpec, example_input, load_bundle, save_bundle
from medmtl.card import model_card
from medmtl.config import plain, to_yaml
from medmtl.data.loader import CaseDataset, train_loader
from medmtl.data.sampler import EpochOrder
from medmtl.engine import checkpoint
from medmtl.engine.callbacks import Callback, Callbacks, History
from medmtl.engine.callbacks import Progress as ProgressBar
from medmtl.engine.fit import Trainer
from medmtl.engine.objective import Objective
from medmtl.engine.optim import average
from medmtl.errors import TrainingInterrupted, UserError
from medmtl.files import write_atomic
from medmtl.finetune import freeze, same_input, start_from
from medmtl.fingerprint import training_fingerprint, write_fingerprint
from medmtl.metrics import describe
from medmtl.models.multitask import MultiTaskModel
from medmtl.predictor import Predictor, channels_last
from medmtl.prepared import Prepared, label_counts, prepare
from medmtl.process import device_named, hold_memory
from medmtl.runs import RunFolder
from medmtl.seeds import counted
from medmtl.study import Study
from medmtl.tasks.base import summary
from medmtl.tasks.classification import Classification

log = logging.getLogger(__name__)
Say = Callable[[str], None]


def train(
    study: Study, *, runs: Path = Path("runs"), fresh: bool = False, say: Say = print, parent: str | None = None
) -> RunFolder:
    """Train a study, or continue or confirm the run that these very settings already have in ``runs``.

    ``parent``: the MLflow run that this one is shown under.
    """
    run = RunFolder.of(study, runs)
    with dist.process_group(), run.locked():
        _train(study, run, fresh, say, parent)
    return run


def _train(study: Study, run: RunFolder, fresh: bool, say: Say, parent: str | None) -> None:
    """Everything that may use the process group; what it holds is released before the group is."""
    if study.fit.threads is not None:
        torch.set_num_threads(study.fit.threads)
    prepared = prepare(study)
    identity = {
        "config_sha256": study.sha256,
        "split_sha256": prepared.split.sha256,
        "manifest_sha256": prepared.manifest.sha256,
        "world_size": dist.world(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "medmtl": __version__,
        **({} if prepared.init_id is None else {"init_bundle": prepared.init_id}),
    }
    if fresh and dist.rank() == 0:  # a fresh run that is killed early must not find the old one's state
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    found = None if fresh else _found(run, identity, say)
    if found is not None and found["progress"]["finished"] and run.bundle.joinpath("spec.yaml").is_file():
        say(f"this run is finished: {run.bundle} (change the seed or another key, or use --fresh, to train again)")
        return
    if dist.rank() == 0:
        write_atomic(run.study, to_yaml(study))
    _say_study(prepared, run, say)
    with _tracked(prepared, run, identity, fresh, parent) as callbacks:
        trainer = build_trainer(prepared, run, identity, callbacks, say)
        if found is not None:
            trainer.restore(found)
            say(f"resuming at epoch {trainer.progress.epoch + 1}, step {trainer.progress.step}")
        trainer.fit()
        _finish(prepared, run, trainer, identity, callbacks, say)


def _found(run: RunFolder, identity: Mapping[str, Any], say: Say) -> dict[str, Any] | None:
    """The state to continue from; refused when it is of other data, another split or number of processes."""
    latest = checkpoint.load_latest(run.checkpoints)
    if latest is None:
        return None
    state, _, warnings = latest
    for warning in warnings:
        say(f"warning: {warning}")
    before = state["identity"]
    strict = ["config_sha256", "split_sha256", "manifest_sha256", "init_bundle"]
    if not state["progress"]["finished"]:  # nothing is left to compute otherwise
        strict.append("world_size")
    changed = [
        f"{key} was {before.get(key)}, is {identity.get(key)}" for key in strict if before.get(key) != identity.get(key)
    ]
    if changed:
        raise UserError(
            "E-RUN-CHANGED",
            "the run cannot be continued: " + "; ".join(changed),
            "restore what changed, or start over with --fresh",
            where=str(run.path),
        )
    loose = [f"{key} was {before.get(key)}, is {identity[key]}" for key in identity if before.get(key) != identity[key]]
    if loose and not state["progress"]["finished"]:
        say("warning: resuming is exact only with the same " + "; ".join(loose))
    return state


def _say_study(prepared: Prepared, run: RunFolder, say: Say) -> None:
    parts = ", ".join(
        f"{name} {len(cases)} cases in {len({c.group for c in cases})} groups"
        for name, cases in prepared.split.parts().items()
    )
    say(f"run {run.path}\nsplit: {parts}; {len(prepared.domains)} training domains")
    for name, counts in label_counts(prepared).items():
        say(f"  {name}: labelled " + ", ".join(f"{part} {count}" for part, count in counts.items()))


@contextmanager
def _tracked(
    prepared: Prepared, run: RunFolder, identity: Mapping[str, Any], fresh: bool, parent: str | None
) -> Iterator[Callbacks]:
    """Progress, history and MLflow on rank 0, nothing elsewhere; all are told how the block ended."""
    study = prepared.study
    if dist.rank() != 0:
        yield Callbacks()
        return
    callbacks = Callbacks([ProgressBar(), History(run.history)])
    with _finishing(callbacks):
        if study.tracking.enabled:
            callbacks.members.append(_open_tracker(prepared, run, identity, fresh, parent))
        yield callbacks


@contextmanager
def _finishing(callbacks: Callbacks) -> Iterator[None]:
    """Tell the callbacks how the block ended: FINISHED, KILLED (a signal) or FAILED."""
    try:
        yield
    except BaseException as error:
        killed = isinstance(error, TrainingInterrupted | KeyboardInterrupt | SystemExit)
        try:
            callbacks.finished("KILLED" if killed else "FAILED")
        except Exception as second:  # the disk is still full, say: the first error is the one to tell
            log.warning("while ending the run: %s", second)
        raise
    callbacks.finished("FINISHED")


def _open_tracker(
    prepared: Prepared, run: RunFolder, identity: Mapping[str, Any], fresh: bool, parent: str | None
) -> Callback:
    """The run in MLflow, new or continued, with settings, hashes and the data it uses."""
    from medmtl.engine.mlflow import Tracker  # mlflow takes seconds to import

    study = prepared.study
    hashes = {key: value for key, value in identity.items() if key.endswith("sha256")}
    tags = {**hashes, "medmtl.version": __version__, "seed": study.seed, "study": study.name}
    resume = None if fresh else run.read_facts().get("mlflow_run_id")
    tracker = Tracker.open(
        study.tracking,
        experiment=study.tracking.experiment or study.name.partition("-only-")[0],
        run_name=run.path.name,
        folder=run.path,
        tags=tags,
        params=plain(study),
        resume_run_id=resume,
        parent=parent,
    )
    run.add_facts({"mlflow_run_id": tracker.run_id, **hashes})
    for part, cases in prepared.split.parts().items():
        frame = pd.DataFrame(
            [{"domain": c.domain or None, **{f"target.{k}": v for k, v in c.targets.items()}} for c in cases]
        )
        tracker.log_dataset(frame, name=f"{study.name}-{part}", digest=prepared.manifest.sha256, context=part)
    return tracker


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
    """``<task>.<metric>`` on (the first ``limit`` cases of) validation, one view, shared out over the ranks."""
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


def _finish(
    prepared: Prepared, run: RunFolder, trainer: Trainer, identity: Mapping[str, Any], callbacks: Callbacks, say: Say
) -> None:
    """Take the best checkpoint, freeze thresholds on validation, write the bundle (rank 0)."""
    if dist.rank() != 0:
        return
    p, study = trainer.progress, prepared.study
    best = checkpoint.load(run.checkpoints / checkpoint.BEST) if p.best_epoch >= 0 else trainer.state()
    weights = (
        best["model"]
        if best["average"] is None
        else {key.removeprefix("module."): value for key, value in best["average"].items() if key != "n_averaged"}
    )
    model = prepared.spec.build()
    model.load_state_dict(weights)
    if study.fit.channels_last:
        channels_last(model)
    predictor = Predictor(model, prepared.spec, device=trainer.device, precision=study.fit.precision)
    table = predictor.table(prepared.dataset(prepared.split.val), batch_size=study.loader.evaluation_batch_size)
    spec = freeze_thresholds(prepared.spec, table)
    selected = {
        "monitor": trainer.monitor,
        "value": p.best,
        "epoch": p.best_epoch,
        "epochs_trained": p.epoch,
        "steps": p.step,
    }
    provenance = {
        **identity,
        "study": study.name,
        "seed": study.seed,
        "selected": selected,
        "python": platform.python_version(),
        "training": {"cases": len(prepared.split.train), "domains": list(prepared.domains)},
    }
    split, root = prepared.split, prepared.manifest.root
    known = training_fingerprint(predictor, split.train, root, held_out=split.val)
    provenance |= write_fingerprint(run.bundle, known)
    identifier = save_bundle(run.bundle, spec, model, provenance=provenance, card=model_card(prepared, spec, selected))
    run.add_facts({"bundle_id": identifier, "selected": selected})
    value = "undefined" if p.best is None else f"{p.best:.4f} (epoch {p.best_epoch + 1})"
    say(f"{study.fit.keep} {trainer.monitor} on validation: {value}; bundle {identifier} in {run.bundle}")
    tracker: Any = next((member for member in callbacks.members if hasattr(member, "log_model")), None)
    if tracker is not None:
        example = np.moveaxis(example_input(spec).numpy(), 1, -1).astype(np.uint8)
        tracker.log_folder(run.bundle, "bundle")
        tracker.log_file(run.study)
        tracker.log_model(run.bundle, example)


def freeze_thresholds(spec: ModelSpec, validation: pd.DataFrame) -> ModelSpec:
    """The specification with every binary task's decision threshold chosen on a validation table."""
    tasks = {
        name: task.freeze(validation[validation["task"] == name]) if isinstance(task, Classification) else task
        for name, task in spec.tasks.items()
    }
    return spec.model_copy(update={"tasks": tasks})
