"""A trained run on the test cases of its own study."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medmtl.bars import bar
from medmtl.bundle import Bundle, load_bundle
from medmtl.controls.store import control_tables
from medmtl.controls.tables import Control, Setting
from medmtl.data.loader import CaseDataset
from medmtl.engine.callbacks import read_history
from medmtl.errors import SafetyRefusal
from medmtl.evaluation.figures import Thumbnail, history_figures
from medmtl.experiment import freeze_thresholds
from medmtl.files import write_atomic
from medmtl.predictor import Predictor
from medmtl.prepared import Prepared, prepare
from medmtl.process import device_named
from medmtl.results.folder import Evaluation, Material, evaluate_cases
from medmtl.results.gallery import failure_galleries, looked_at, to_show
from medmtl.results.settings import study_of
from medmtl.results.tracking import flat_metrics, reopened
from medmtl.runs import RunFolder
from medmtl.study import EvaluationConfig, Study
from medmtl.tasks.annotators import Annotators

Say = Callable[[str], None]
VIEWS = "views"  # in the provenance of an evaluation whose views are not the bundle's


def evaluate_run(run: RunFolder, *, study: Study | None = None, say: Say = print) -> Evaluation:
    """Evaluate a run's bundle on the test part of its own study; validation is predicted too, for comparisons.

    ``study``: the run's, with what it leaves open changed (:func:`.settings.study_of`); with other views, thresholds
    are chosen anew on validation. Refuses (exit 6) when manifest or split are not those of training. Every reading of
    the test set is counted in ``run.json`` and stated in the report.
    """
    own = study_of(run)
    study = own if study is None else study
    config, bundle = study.evaluation, load_bundle(run.bundle)
    prepared = prepare(study)
    _same_data(prepared, bundle)
    controls = controls_of(prepared, config, run)
    bundle, viewed = _viewed(bundle, prepared)
    predictor = predictor_of(bundle, study)
    learned = config.aggregate is not None and config.aggregate.how == "attention"
    parts = [part for part in ("train", "val", "test") if part != "train" or learned]
    data = {part: prepared.dataset(prepared.split.parts()[part]) for part in parts}
    tables = {part: _predicted(predictor, part, dataset, study) for part, dataset in data.items()}
    readings = int(run.read_facts().get("test_evaluations", 0)) + 1
    run.add_facts({"test_evaluations": readings})
    provenance = {**provenance_of(bundle, prepared), **viewed, "test set read": f"{readings} time(s) by this run"}
    worst = to_show(tables["test"], bundle.spec.tasks, config.failures)
    shown = failure_galleries(worst, looked_at(predictor, data["test"], worst, tables["test"]["case_id"]))
    material = Material(
        study.name, tables, bundle.spec, config, provenance,
        controls={name: control.table for name, control in controls.items()},
        chosen={name: dict(control.chosen) for name, control in controls.items() if control.chosen},
        thumbnail=thumbnails(prepared),
        figures={**shown, **history_figures(read_history(run.history))},
        notes=[split_note(prepared, tables["test"], bundle.spec.views), *_write_confusions(run.evaluation, bundle),
               *(remark for control in controls.values() for remark in control.remarks)],
    )  # fmt: skip
    found = evaluate_cases(run.evaluation, material, say=say)
    with reopened(study, run) as tracker:
        if tracker is not None:
            tracker.log_metrics(dict(flat_metrics(found.result)))
            tracker.log_folder(run.evaluation, "evaluation")
    return found


def predictor_of(bundle: Bundle, study: Study) -> Predictor:
    """The bundle at work, in fp32 as it predicts, on the study's device."""
    return Predictor.of(bundle, device=device_named(study.fit.device))


def _viewed(bundle: Bundle, prepared: Prepared) -> tuple[Bundle, dict[str, str]]:
    """The bundle with the study's views, and what provenance says where they are not its own: thresholds then are
    those of validation seen that way."""
    study, views = prepared.study, prepared.study.views
    if views == bundle.spec.views:
        return bundle, {}
    other = replace(bundle, spec=bundle.spec.model_copy(update={"views": views}))
    val = _predicted(predictor_of(other, study), "val", prepared.dataset(prepared.split.val), study)
    said = {VIEWS: f"{views} for this evaluation; the bundle's are {bundle.spec.views}"}
    return replace(other, spec=freeze_thresholds(other.spec, val)), said


def setting_of(prepared: Prepared) -> Setting:
    """What the controls of a study are computed from."""
    return Setting(prepared.manifest, prepared.split, prepared.spec.preprocess, prepared.spec.tasks)


def controls_of(prepared: Prepared, config: EvaluationConfig, run: RunFolder) -> dict[str, Control]:
    """The controls on a run's own split, kept in its folder."""
    return control_tables(setting_of(prepared), config.controls, run.path / "controls", bar=bar)


def provenance_of(bundle: Bundle, prepared: Prepared) -> dict[str, str]:
    """Model, study, data and versions, by their identifiers and hashes."""
    p = bundle.provenance
    return {
        "bundle": bundle.id,
        "study": prepared.study.name,
        "seed": str(prepared.study.seed),
        "manifest": str(p.get("manifest_sha256", ""))[:16],
        "split": str(p.get("split_sha256", ""))[:16],
        "configuration": str(p.get("config_sha256", ""))[:16],
        "medmtl": str(p.get("medmtl", "")),
        "torch": str(p.get("torch", "")),
    }


def thumbnails(prepared: Prepared) -> Thumbnail:
    """Case id -> image of the study as uint8 [H, W, 3]; of a volume the middle slice, its rows from the top down."""
    images = {case.case_id: case.image for case in prepared.manifest.cases}

    def thumbnail(case: str) -> npt.NDArray[np.uint8]:
        tensor, volume = prepared.spec.preprocess.read(prepared.manifest.path(images[case]))
        array = tensor.numpy() if volume is None else tensor.numpy()[:, tensor.shape[1] // 2, ::-1]
        colour = np.repeat(array[:1], 3, 0) if array.shape[0] != 3 else array
        return np.round(np.moveaxis(colour, 0, -1) * 255).astype(np.uint8)

    return thumbnail


def split_note(prepared: Prepared, test: pd.DataFrame, views: str) -> str:
    """Who is where, and what was chosen on what: said in every report."""
    return (
        f"{len(prepared.split.train)} training, {len(prepared.split.val)} validation and "
        f"{test['case_id'].nunique()} test cases; no group is in two of them. Thresholds were chosen on validation. "
        f"Predictions are averaged over the views '{views}'."
    )


def _predicted(predictor: Predictor, part: str, dataset: CaseDataset, study: Study) -> pd.DataFrame:
    with bar(f"predicting {part}", len(dataset)) as tick:
        return predictor.table(dataset, batch_size=study.loader.evaluation_batch_size, tick=tick)


def _same_data(prepared: Prepared, bundle: Bundle) -> None:
    found = {"manifest_sha256": prepared.manifest.sha256, "split_sha256": prepared.split.sha256}
    changed = [key for key, value in found.items() if bundle.provenance.get(key) != value]
    if changed:
        raise SafetyRefusal(
            "E-EVAL-DATA",
            f"{' and '.join(changed)} are not those of training: test cases may have been trained on",
            "restore the manifest, or train again",
            where=prepared.manifest.name,
        )


def _write_confusions(folder: Path, bundle: Bundle) -> Sequence[str]:
    """``confusions-<task>.csv`` of every task that learned its annotators' errors, and what they say in words."""
    said = []
    for name, task in bundle.spec.tasks.items():
        if isinstance(task, Annotators):
            head = bundle.model.heads[name]
            table = task.confusions(head).to_csv(index=False, lineterminator="\n")
            write_atomic(folder / f"confusions-{name}.csv", table)
            said += [f"{name}: {line}." for line in task.skills(head)]
    return said
