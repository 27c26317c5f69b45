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

from medmtl import __version__
from medmtl import distributed as dist
from medmtl.assembly import build_trainer
from medmtl.bundle import ModelSpec, example_input, load_bundle, save_bundle
from medmtl.card import model_card
from medmtl.config import plain, to_yaml
from medmtl.engine import checkpoint
from medmtl.engine.callbacks import Callback, Callbacks, History
from medmtl.engine.callbacks import Progress as ProgressBar
from medmtl.engine.fit import Trainer
from medmtl.errors import TrainingInterrupted, UserError
from medmtl.files import write_atomic
from medmtl.fingerprint import write_fingerprint
from medmtl.fingerprint.cases import training_fingerprint
from medmtl.predictor import Predictor, channels_last
from medmtl.prepared import Prepared, label_counts, prepare, unlabelled
from medmtl.runs import RunFolder
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
        if dist.rank() == 0:
            _make_good(study, run)
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
    say(f"augmentation: {', '.join(prepared.study.augment.acting()) or 'none'}")
    if bare := unlabelled(prepared):
        say(
            f"warning: cases without a label of any task: {len(bare)}, the first is {bare[0].case_id} "
            f"(manifest row {bare[0].row}): fill a cell of theirs, or leave them out"
        )


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
    if study.tracking.enabled:  # all of it is sent or spooled, the end too
        facts = run.read_facts()
        run.add_facts({"logged": [facts["mlflow_run_id"], facts["bundle_id"]]})


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


def _finish(
    prepared: Prepared, run: RunFolder, trainer: Trainer, identity: Mapping[str, Any], callbacks: Callbacks, say: Say
) -> None:
    """Take the best checkpoint, freeze thresholds on validation, write the bundle (rank 0).

    All of it in fp32, as the bundle predicts; validation within a bf16 training is bf16, at a fraction of the time.
    """
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
    predictor = Predictor(model, prepared.spec, device=trainer.device)
    validation, together = prepared.dataset(prepared.split.val), study.loader.evaluation_batch_size
    table = predictor.table(validation, batch_size=together)
    spec = freeze_thresholds(prepared.spec, table)
    selected = {
        "monitor": trainer.monitor,
        "value": p.best,
        "epoch": p.best_epoch,
        "epochs_trained": p.epoch,
        "steps": p.step,
    }
    if study.fit.precision != "fp32" and p.best is not None:  # what training measured is not what the bundle predicts
        plain_view = Predictor(model, prepared.spec, device=trainer.device, views="identity")
        once = table if len(predictor.views) == 1 else plain_view.table(validation, batch_size=together)
        selected["value"] = _monitored(trainer.monitor, prepared.spec, once)
    if len(predictor.views) > 1 and p.best is not None:  # ``value`` is of one view
        selected["value_with_views"] = _monitored(trainer.monitor, prepared.spec, table)
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
    value = "undefined" if p.best is None else f"{selected['value']:.4f} (epoch {p.best_epoch + 1})"
    say(f"{study.fit.keep} {trainer.monitor} on validation: {value}; bundle {identifier} in {run.bundle}")
    tracker: Any = next((member for member in callbacks.members if hasattr(member, "log_model")), None)
    if tracker is not None:
        _log_bundle(run, spec, tracker)


def _log_bundle(run: RunFolder, spec: ModelSpec, tracker: Any) -> None:
    example = np.moveaxis(example_input(spec).numpy(), 1, -1).astype(np.uint8)
    tracker.log_folder(run.bundle, "bundle")
    tracker.log_file(run.study)
    tracker.log_model(run.bundle, example)


def _make_good(study: Study, run: RunFolder) -> None:
    """Add what a kill after the bundle was written kept from the run's facts or from its entry in MLflow.

    ``logged`` of the facts is the entry, and the bundle in it, that is whole. Where it is absent, the run may have been
    finished before there was this fact: MLflow is asked whether there is a model. The entry's status alone does not
    tell, for an evaluation ends an entry that lacks its model as FINISHED, too. Where MLflow does not have the run any
    more, or does not answer, the run is finished as it is.
    """
    facts = run.read_facts()
    if "bundle_id" not in facts:
        bundle = load_bundle(run.bundle)
        facts |= {"bundle_id": bundle.id, "selected": bundle.provenance.get("selected")}
        run.add_facts(facts)
    entry = facts.get("mlflow_run_id")
    logged = {"logged": [entry, facts["bundle_id"]]}
    if not study.tracking.enabled or entry is None or logged.items() <= facts.items():
        return
    from medmtl.engine.mlflow import Tracker, concluded  # mlflow takes seconds to import

    whole = concluded(study.tracking, entry)
    if whole is None:
        return
    if not whole:
        config, spec = study.tracking.model_copy(update={"system_metrics": False}), load_bundle(run.bundle).spec
        with Tracker.open(
            config, run_name=run.path.name, folder=run.path, tags={}, params={}, resume_run_id=entry, training=False
        ) as tracker:
            _log_bundle(run, spec, tracker)
    run.add_facts(logged)


def _monitored(monitor: str, spec: ModelSpec, table: pd.DataFrame) -> float:
    """The monitored metric of a case table, as training measures it."""
    name, _, metric = monitor.partition(".")
    return float(summary(spec.tasks[name], table[table["task"] == name].sort_values("case_id"))[metric])


def freeze_thresholds(spec: ModelSpec, validation: pd.DataFrame) -> ModelSpec:
    """The specification with every binary task's decision threshold chosen on a validation table."""
    tasks = {
        name: task.freeze(validation[validation["task"] == name]) if isinstance(task, Classification) else task
        for name, task in spec.tasks.items()
    }
    return spec.model_copy(update={"tasks": tasks})
