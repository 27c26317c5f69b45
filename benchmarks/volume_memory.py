"""Peak resident memory of training on and predicting a volume of 256^3 voxels by patches.

    python benchmarks/volume_memory.py [--size 256] [--patch 64] [--encoder efficientnet_3d]

A process each: ``train`` reads the volume and its mask from NIfTI files through the loader, cuts two patches and runs
forward, backward and a step of a 3-D encoder with a decoder and a regression head; ``predict`` slides over the whole
volume, half of a window apart; ``import`` only loads the modules. Each must stay below 6 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from medmtl.balance import FixedConfig
from medmtl.bundle import ModelSpec
from medmtl.config import validate
from medmtl.data.batch import collate
from medmtl.data.case import Case
from medmtl.data.loader import CaseDataset
from medmtl.data.sampler import Draw
from medmtl.engine.objective import Objective
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor

LIMIT_GIB = 6.0
STEPS = 2
ENCODERS = {
    "efficientnet_3d": {"kind": "efficientnet_3d", "name": "b0"},
    "slices": {"kind": "slices", "name": "efficientnet_b0"},
    "vit_3d": {"kind": "vit_3d", "width": 192, "depth": 6, "heads": 6},
}


def spec(encoder: str, patch: int) -> ModelSpec:
    """A mask and a number, patches of ``patch`` voxels to an axis."""
    where = {"size": [patch] * 3, "foreground": 0.5, "windows": 1}
    tree = {
        "preprocess": {"channels": 1, "volume": {}, "patches": where, "normalise": {"kind": "foreground"}},
        "encoder": ENCODERS[encoder],
        "tasks": {
            "mask": {"kind": "segmentation", "classes": ["outside", "ball"], "decoder": {"width": 16}},
            "score": {"kind": "regression", "low": 0, "high": 1},
        },
    }
    return validate(ModelSpec, tree, where="benchmark")


def write(folder: Path, size: int) -> None:
    """A volume of noise with a ball, and the ball as a mask."""
    axis = np.arange(size) - size / 2
    ball = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < (size / 4) ** 2).astype(np.int16)
    image = np.random.default_rng(0).random((size,) * 3, dtype=np.float32) + ball
    write_nifti(folder / "image.nii.gz", Volume(image, np.eye(4)))
    write_nifti(folder / "mask.nii.gz", Volume(ball, np.eye(4)))


def train(folder: Path, settings: ModelSpec) -> None:
    """Two steps on batches of two patches."""
    torch.manual_seed(0)
    targets = {name: task.reader() for name, task in settings.tasks.items()}
    case = Case("c", "g", "image.nii.gz", targets={"mask": "mask.nii.gz", "score": "0.5"})
    dataset = CaseDataset([case], folder, targets, (), settings.preprocess)
    objective = Objective(settings.build(), settings.tasks, FixedConfig().build(len(settings.tasks)))
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-3)
    for step in range(STEPS):
        batch = collate([dataset[Draw(0, 2 * step + i, 0)] for i in range(2)])
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()


def predict(folder: Path, settings: ModelSpec) -> None:
    """The whole volume, read and preprocessed, through :meth:`Predictor.decode`."""
    torch.manual_seed(0)
    image = settings.preprocess.apply(settings.preprocess.read(folder / "image.nii.gz")[0])
    found = Predictor(settings.build(), settings).decode(image[None])
    assert found["mask"].shape[2:] == image.shape[1:] and torch.isfinite(found["mask"]).all()


def measure(what: str, folder: Path, settings: ModelSpec) -> dict[str, float]:
    """Seconds and the peak of this process in GiB."""
    began = time.perf_counter()
    {"train": train, "predict": predict, "import": lambda folder, settings: None}[what](folder, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": time.perf_counter() - began, "peak_gib": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--encoder", choices=tuple(ENCODERS), default="efficientnet_3d")
    parser.add_argument("--only", choices=("import", "train", "predict"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        torch.set_num_threads(1)
        print(json.dumps(measure(args.only, args.folder, spec(args.encoder, args.patch))))
        return 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), args.size)
        for what in ("import", "train", "predict"):
            command = [sys.executable, __file__, "--only", what, "--folder", name,
                       "--patch", str(args.patch), "--encoder", args.encoder]  # fmt: skip
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            print(f"{what:8}  peak {found['peak_gib']:.2f} GiB, {found['seconds']:.0f} s", flush=True)
            worst = max(worst, found["peak_gib"])
    print(f"limit {LIMIT_GIB} GiB: {'kept' if worst <= LIMIT_GIB else 'exceeded'}")
    return int(worst > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
