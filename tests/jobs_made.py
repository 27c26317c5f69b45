"""What tests of prediction jobs begin with: a small bundle with known weights, and time that passes by steps."""

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from medmtl.bundle import ModelSpec, save_bundle
from medmtl.inference.watch import Clock

GRADE: dict[str, Any] = {"grade": {"kind": "classification", "classes": ["low", "high"]}}
PICTURES: dict[str, Any] = {"channels": 3}


def made_bundle(
    folder: Path, tasks: Mapping[str, Any], preprocess: Mapping[str, Any] = PICTURES, encoder: str = "timm"
) -> Path:
    """A bundle of the smallest network, untrained, the same every time."""
    torch.manual_seed(0)
    tree = {"preprocess": preprocess, "encoder": {"kind": encoder, "name": "test_efficientnet"}, "tasks": tasks}
    spec = ModelSpec.model_validate(tree)
    save_bundle(folder, spec, spec.build(), provenance={}, card="{bundle_id}")
    return folder


def untimed(out: Path, *others: str) -> dict[str, bytes]:
    """The files of a job by name, but for those that hold times, and ``others``."""
    timed = (".lock", "cases.jsonl", "manifest.json", "summary.md", *others)
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in timed)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def stepping(steps: Iterable[Callable[[], Any]]) -> Clock:
    """A watcher's clock: each round is six seconds later, and a step is done after it; after the last one SIGTERM.

    ``steps`` may be a list that grows later.
    """
    left = steps if isinstance(steps, list) else list(steps)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 6.0
        if left:
            left.pop(0)()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    return Clock(lambda: now[0], sleep)
