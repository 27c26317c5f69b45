"""The gate of a bundle: how often it doubts images of its own study, and how often wrong ones, by name and strength.

    python benchmarks/gate.py choose runs/RUN ...     # a run folder with bundle/ and study.yaml, from the checkout root
    python benchmarks/gate.py confirm runs/RUN ...

The fingerprint is made anew from the study's training and validation cases. The study's *test* cases, and what is made
of them, are split by the hash of their patient into two halves: rules and constants of ``medmtl.fingerprint`` were
chosen by ``choose`` alone; ``confirm`` is for reading once, has random numbers of its own, and kinds of corruption that
``choose`` never has. Images of other studies have this study's size, which would give them away. A kind's line is % in
range / warned about / refused, and ``n`` images; ``(unreadable)`` were refused before the gate.
"""

import argparse
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from gate_inputs import DRAWN, PICTURES, PICTURES_UNSEEN, VOLUMES, VOLUMES_UNSEEN, Array, quantised, resized

from medmtl.bundle import load_bundle
from medmtl.config import load
from medmtl.data.case import Case, read_manifest
from medmtl.data.preprocess import Preprocess
from medmtl.data.split import split_cases
from medmtl.errors import UserError
from medmtl.fingerprint import Fingerprint, compare, look
from medmtl.fingerprint.cases import training_fingerprint
from medmtl.io.nifti import read_nifti
from medmtl.io.raster import read_image
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor
from medmtl.study import Study

HALVES = ("choose", "confirm")
STUDIES = ("am_masks", "cervical_screening", "oasis", "skin_lesions")
HEADS, ORGANS = Path("../shared/data/ixi-t1w/t1w"), Path("../shared/data/organs-ct-mr")
Image = Array | Volume


@dataclass
class Tally:
    """Verdicts by kind of image, and what the look and the comparison cost."""

    known: Fingerprint
    preprocess: Preprocess
    levels: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    named: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: list[float] = field(default_factory=list)

    def add(self, kind: str, image: Image) -> None:
        try:
            level, fields = self._judge(image)
        except UserError:
            level, fields = "unreadable", []
        self.levels[kind][level] += 1
        self.named[kind].update(fields)

    def _judge(self, image: Image) -> tuple[str, list[str]]:
        volume, grid = (image, None) if isinstance(image, Volume) else (None, None)
        if volume is not None:
            assert self.preprocess.volume is not None
            pixels, grid = self.preprocess.volume.image(volume)
        else:
            pixels = torch.as_tensor(quantised(np.asarray(image, np.float32)))
        self.preprocess.apply(pixels)
        began = time.process_time()
        verdict = compare(self.known, look(pixels, volume=volume, grid=grid, preprocess=self.preprocess))
        self.seconds.append(time.process_time() - began)
        return verdict.level, list(verdict.fields)

    def lines(self) -> Iterator[str]:
        for kind, levels in self.levels.items():
            total, refused_before = sum(levels.values()), levels["unreadable"]
            shares = " / ".join(f"{100 * levels[level] / total:.0f}" for level in ("in_range", "warn", "refuse"))
            more = f" ({100 * refused_before / total:.0f} unreadable)" if refused_before else ""
            fields = ", ".join(name for name, _ in self.named[kind].most_common(3))
            yield f"| {kind} | {shares}{more} | {total} | {fields} |"
        yield f"look and compare: {1000 * float(np.median(self.seconds)):.1f} ms of CPU per image (median)"


def half_of(group: str) -> str:
    return HALVES[hashlib.sha256(f"gate {group}".encode()).digest()[0] % 2]


def spread(items: Sequence[Case], most: int) -> list[Case]:
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def measure(run: Path, half: str, *, most: int, changed: int) -> tuple[Fingerprint, Tally]:
    """The verdicts about up to ``most`` test cases of the half, and about wrong inputs made of ``changed`` of them."""
    study, bundle = load(Study, run / "study.yaml"), load_bundle(run / "bundle")
    manifest = read_manifest(Path(study.data.manifest))
    split = split_cases(manifest, study.data.split, stratify=study.stratify)
    predictor = Predictor(bundle.model, bundle.spec)
    known = training_fingerprint(predictor, split.train, manifest.root, held_out=split.val)
    tally, rng = Tally(known, bundle.spec.preprocess), np.random.default_rng(HALVES.index(half))
    cases = [case for case in split.test if half_of(case.group) == half]
    for case in spread(cases, most):
        tally.add("its own test cases", read(manifest.root, case, tally.preprocess))
    originals = [read(manifest.root, case, tally.preprocess) for case in spread(cases, changed)]
    for kind, image in wrong(originals, half, rng):
        tally.add(kind, image)
    own = manifest.root.name
    others = heads(half) if isinstance(originals[0], Volume) else other_pictures(originals[0].shape[1:], own, half, rng)
    for kind, image in others:
        tally.add(kind, image)
    return known, tally


def read(root: Path, case: Case, preprocess: Preprocess) -> Image:
    path = root / case.image
    return read_nifti(path) if preprocess.volume is not None else read_image(path, channels=preprocess.channels)


def wrong(originals: Sequence[Image], half: str, rng: np.random.Generator) -> Iterator[tuple[str, Image]]:
    for image in originals:
        if isinstance(image, Volume):
            for kind, bend in (VOLUMES | (VOLUMES_UNSEEN if half == "confirm" else {})).items():
                yield kind + " (unseen)" * (kind in VOLUMES_UNSEEN), bend(image, rng)
        else:
            for kind, change in (PICTURES | (PICTURES_UNSEEN if half == "confirm" else {})).items():
                yield kind + " (unseen)" * (kind in PICTURES_UNSEEN), change(image, rng)


def other_pictures(size: tuple[int, int], own: str, half: str, rng: np.random.Generator) -> Iterator[tuple[str, Image]]:
    for kind, draw in DRAWN.items():
        yield from ((kind, draw(size, rng)) for _ in range(10))
    for name in STUDIES:
        path = Path("data") / name / "manifest.csv"
        if name == own or not path.is_file():
            continue
        manifest = read_manifest(path, check_files=False)
        for case in spread([case for case in manifest.cases if half_of(case.group) == half], 20):
            if name == "oasis":
                yield "slices of oasis", resized(brain_slice(manifest.root / case.image), size)
            else:
                yield f"pictures of {name}", resized(read_image(manifest.root / case.image, channels=3), size)


def brain_slice(path: Path) -> Array:
    array = np.asarray(read_nifti(path).array, np.float32)
    grey = np.clip(array[:, :, array.shape[2] // 2].T[::-1] / np.percentile(array, 99.5), 0, 1)
    return np.repeat(grey[None], 3, 0)


def heads(half: str) -> Iterator[tuple[str, Image]]:
    """Volumes of other sources: heads that still have their skull, and abdomens."""
    for path in sorted(HEADS.glob("*.nii.gz")):
        if half_of(path.name.split("-")[0]) == half:
            yield "heads with a skull", read_nifti(path)
    for kind in ("ct", "mr"):
        if (ORGANS / f"{kind}.nii.gz").is_file():
            yield f"an abdomen ({kind.upper()})", read_nifti(ORGANS / f"{kind}.nii.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=HALVES)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=200, help="test cases that false alarms are counted on")
    parser.add_argument("--changed", type=int, default=20, help="test cases that wrong inputs are made of")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for run in given.runs:
        began = time.monotonic()
        known, tally = measure(run, given.half, most=given.most, changed=given.changed)
        level = "no gauge" if known.level is None else f"stated level {known.level:.1%}"
        print(f"\n## {run.name}, {given.half}: {known.cases} cases of {known.groups} groups, {level}\n")
        print("| images | in range / warn / refuse, % | n | fields named most |\n|---|---|---|---|")
        print("\n".join(tally.lines()) + f"; {time.monotonic() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
