"""The model card that goes with a bundle."""

from collections.abc import Mapping
from typing import Any

from medmtl import __version__
from medmtl.bundle import ModelSpec
from medmtl.prepared import Prepared, label_counts
from medmtl.tasks.classification import Classification


def model_card(prepared: Prepared, spec: ModelSpec, selected: Mapping[str, Any]) -> str:
    """The model card; ``{bundle_id}`` is filled in when the bundle is written."""
    counts = label_counts(prepared)
    tasks = "\n".join(
        f"- `{name}` ({task.kind}{', auxiliary' if task.auxiliary else ''}): labels in train {counts[name]['train']}, "
        f"validation {counts[name]['val']}"
        for name, task in spec.tasks.items()
    )
    thresholds = "\n".join(
        f"- `{name}`: {task.positive or task.classes[-1]} from probability {task.threshold:.4f}"
        for name, task in spec.tasks.items()
        if isinstance(task, Classification) and task.threshold is not None
    )
    fused = spec.covariates
    beside = (
        f"\nSees, beside the image: {', '.join((*fused.numeric, *fused.categorical))} (use: {fused.use}); without "
        "them a case counts as one of which none is known."
        if fused is not None
        else ""
    )
    size = " x ".join(map(str, spec.preprocess.window or spec.preprocess.resize or ())) or "any"
    return f"""# {prepared.study.name} ({{bundle_id}})

Research use only; not a medical device. Written by medmtl {__version__}.

## Model
Encoder `{spec.encoder.kind} {spec.encoder.name}`, input {size} pixels, {spec.preprocess.channels} channels.
Predictions are averaged over the views `{spec.views}`.{beside}

## Tasks
{tasks}

## Decision thresholds, chosen on validation
{thresholds or "- none"}

## Data
Trained on {len(prepared.split.train)} cases of {len({c.group for c in prepared.split.train})} groups from the domains:
{", ".join(prepared.domains) or "unknown"}. Selected by {selected["monitor"]}
= {selected["value"]} on {len(prepared.split.val)} validation cases.

## Limits
Images from other scanners, stains or sites, of other magnification, or prepared otherwise may be read wrongly without a
warning. Evaluate on your own data before any use: `medmtl evaluate`.
"""
