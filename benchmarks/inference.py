"""What prediction costs: one shared model against one model per task, the whole job against its forward passes, and
memory against the number of images. Every figure is a ratio of two CPU times of one torch thread (or of two peaks) of
one run on one machine: threads of torch that wait for one another on a busy machine would count as work.

    python benchmarks/inference.py --images 64 --tasks 3 --size 128 --encoder efficientnet_b0
"""

import argparse
import io
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.inference.pipeline import Job, predict
from medmtl.io.raster import read_image, write_png
from medmtl.predictor import Predictor

FEW, MANY = 50, 1000  # pictures
_MEMORY_S = 60.0  # for both jobs whose peaks are compared


def bundle(folder: Path, encoder: str, size: int, tasks: list[str]) -> Path:
    torch.manual_seed(0)
    tree = {
        "preprocess": {"window": [size, size]},
        "encoder": {"name": encoder},
        "tasks": {name: {"kind": "classification", "classes": ["no", "yes"]} for name in tasks},
    }
    spec = ModelSpec.model_validate(tree)
    save_bundle(folder, spec, spec.build(), provenance={}, card="")
    return folder


def scans(folder: Path, count: int, size: int) -> Path:
    """Pictures that compress about as well as photographs: noise over a gradient."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, size)[None, :, None]
    for n in range(count):
        write_png(folder / f"{n:05d}.png", (slope + rng.integers(0, 40, (size, size, 3))).astype(np.uint8))
    return folder


def job_s(path: Path, source: Path, out: Path, batch: int, workers: int) -> float:
    began = time.process_time()
    job = Job(path, source, out, device="cpu", batch_size=batch, workers=workers)
    summary = predict(job, console=Console(file=io.StringIO()))
    assert summary.exit_code == 0
    return time.process_time() - began


def forward_s(path: Path, source: Path, batch: int) -> float:
    """The forward passes alone, of images that are in memory already."""
    loaded = load_bundle(path)
    predictor = Predictor.of(loaded)
    images = [loaded.spec.preprocess.apply(read_image(file, channels=3)) for file in sorted(source.glob("*.png"))]
    batches = [torch.stack(images[start : start + batch]) for start in range(0, len(images), batch)]
    predictor.decode(batches[0])
    began = time.process_time()
    for one in batches:
        predictor.decode(one)
    return time.process_time() - began


def peak(arguments: tuple[Path, Path, Path, int, int], pipe: "Connection[int, int]") -> None:
    job_s(*arguments)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak_mib(path: Path, source: Path, out: Path, *, until: float) -> float | None:
    """The most memory that a process of its own held during the job; None if it has not ended ``until`` then."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=peak, args=((path, source, out, 32, 1), there))
    process.start()
    there.close()  # so that a process that ends without a word is the end of the file
    try:
        return float(here.recv()) / 1024 if here.poll(max(0.0, until - time.monotonic())) else None
    finally:
        process.kill()
        process.join()


def memory(bundle_path: Path, root: Path, size: int) -> str:
    """The peak of a job over MANY pictures against one over FEW, or that a minute did not suffice."""
    sources = [(root / f"m{n}-out", scans(root / f"m{n}", n, size)) for n in (FEW, MANY)]
    until = time.monotonic() + _MEMORY_S
    few, many = (peak_mib(bundle_path, source, out, until=until) for out, source in sources)
    if few is None or many is None:
        return f"peak memory: not measured within {_MEMORY_S:.0f} s"
    return f"peak memory of {MANY} / {FEW} pictures: {many / few:.3f} ({few:.0f}, {many:.0f} MiB)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--encoder", default="efficientnet_b0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"task{n}" for n in range(given.tasks)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = scans(root / "scans", given.images, given.size)
        shared = bundle(root / "shared", given.encoder, given.size, names)
        single = [bundle(root / name, given.encoder, given.size, [name]) for name in names]
        ratios: list[float] = []
        overheads: list[float] = []
        for number in range(given.repeats):
            one = job_s(shared, source, root / f"out-{number}", given.batch, given.workers)
            each = [
                job_s(path, source, root / f"out-{number}-{path.name}", given.batch, given.workers) for path in single
            ]
            ratios.append(sum(each) / one)
            overheads.append(one / forward_s(shared, source, given.batch))
        print(f"{given.encoder}, {given.images} images of {given.size} px")
        for what, found in (
            (f"{given.tasks} single-task models / one shared model", ratios),
            ("whole job / its forward passes", overheads),
        ):
            print(f"{what}: median {np.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        print(memory(bundle(root / "small", "test_efficientnet", 32, names[:1]), root, 32))


if __name__ == "__main__":
    main()
