"""What prediction costs: one shared model against one model per task, the whole job against its forward passes, and
memory against the number of images. Every figure is a ratio of two times (or of two peaks) of one run on one machine,
the better of several rounds each. CPU time (of this process: not of those that read) tells what the work is, even on a
busy machine; wall time, with one torch thread and a core beside it, what is left of it when reading and writing overlap
with the network: that one needs a quiet machine, and so many pictures that starting is no part of it.

Cores share caches, memory and heat. How much of a difference is theirs is told by a control: the forward passes alone,
while a process that has nothing to do with them reads the same pictures as fast as the network takes them.

    python benchmarks/inference.py --images 4096 --tasks 3 --size 64 --encoder efficientnet_b0 --batch 32
"""

import argparse
import io
import multiprocessing
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.data.case import Case
from medmtl.fingerprint import read_fingerprint, write_fingerprint
from medmtl.fingerprint.cases import training_fingerprint
from medmtl.inference.inputs import Finder
from medmtl.inference.pipeline import Job, opened
from medmtl.inference.reading import Reader
from medmtl.io.raster import read_image, write_png
from medmtl.predictor import Predictor
from medmtl.process import hold_memory

FEW, MANY = 100, 10_000  # pictures
_MEMORY_S = 300.0  # for both jobs whose peaks are compared


def bundle(folder: Path, encoder: str, size: int, tasks: list[str], known: Path | None = None) -> Path:
    """An untrained bundle; with the fingerprint of the pictures ``known``, so that the gate has its work."""
    torch.manual_seed(0)
    tree = {
        "preprocess": {"window": [size, size]},
        "encoder": {"name": encoder},
        "tasks": {name: {"kind": "classification", "classes": ["no", "yes"]} for name in tasks},
    }
    spec = ModelSpec.model_validate(tree)
    model, provenance = spec.build(), {}
    if known is not None:
        cases = [Case(file.stem, file.stem, file.name, "", "", {}, {}) for file in sorted(known.glob("*.png"))]
        provenance = write_fingerprint(folder, training_fingerprint(Predictor(model, spec), cases, known))
    save_bundle(folder, spec, model, provenance=provenance, card="")
    return folder


def scans(folder: Path, count: int, size: int) -> Path:
    """Pictures that compress about as well as photographs: noise over a gradient."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, size)[None, :, None]
    for n in range(count):
        write_png(folder / f"{n:05d}.png", (slope + rng.integers(0, 40, (size, size, 3))).astype(np.uint8))
    return folder


@dataclass(frozen=True)
class Cost:
    """Seconds of one job, or of its forward passes alone."""

    cpu: float
    wall: float
    stages: Mapping[str, float] = field(default_factory=dict)


def job_cost(path: Path, source: Path, out: Path, batch: int, workers: int) -> Cost:
    """The whole job: bundle, folder, reading, network, writing, tables."""
    cpu, wall = time.process_time(), time.perf_counter()
    job = Job(path, source, out, device="cpu", batch_size=batch, workers=workers)
    with opened(job, Console(file=io.StringIO())) as session:
        summary = session.run()
    assert summary.exit_code == 0
    return Cost(time.process_time() - cpu, time.perf_counter() - wall, dict(session.work.seconds))


def forward_cost(path: Path, source: Path, batch: int) -> Cost:
    """The forward passes alone, of images that are in memory already."""
    hold_memory()  # as the job does
    loaded = load_bundle(path)
    predictor = Predictor.of(loaded)
    images = [loaded.spec.preprocess.apply(read_image(file, channels=3)) for file in sorted(source.glob("*.png"))]
    batches = [torch.stack(images[start : start + batch]) for start in range(0, len(images), batch)]
    predictor.decode(batches[0])
    cpu, wall = time.process_time(), time.perf_counter()
    for one in batches:
        predictor.decode(one)
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def beside_cost(path: Path, source: Path, batch: int, pace: float) -> Cost:
    """As :func:`forward_cost`, with a process beside that reads ``batch`` pictures every ``pace`` seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=read_on, args=(path, source, batch, pace, there), daemon=True)
    process.start()
    try:
        here.recv()
        return forward_cost(path, source, batch)
    finally:
        process.kill()
        process.join()


def read_on(path: Path, source: Path, batch: int, pace: float, pipe: "Connection[int, int]") -> None:
    torch.set_num_threads(1)
    hold_memory()
    loaded = load_bundle(path)
    known = read_fingerprint(path, loaded.provenance)
    reader = Reader(source, loaded.spec.preprocess, max_bytes=2**30, known=known)
    inputs = Finder(source, loaded.spec.preprocess).find().inputs
    pipe.send(0)
    while True:
        for start in range(0, len(inputs), batch):
            began = time.perf_counter()
            for item in inputs[start : start + batch]:
                reader.loaded(item)
            time.sleep(max(0.0, pace - (time.perf_counter() - began)))


def peak(arguments: tuple[Path, Path, Path, int, int], pipe: "Connection[int, int]") -> None:
    job_cost(*arguments)
    status = Path("/proc/self/status").read_text()  # ru_maxrss is that of the parent, if that was larger
    pipe.send(int(status.partition("VmHWM:")[2].split()[0]))


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
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--encoder", default="efficientnet_b0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"task{n}" for n in range(given.tasks)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = scans(root / "scans", given.images, given.size)
        shared = bundle(root / "shared", given.encoder, given.size, names, source)
        single = [bundle(root / name, given.encoder, given.size, [name], source) for name in names]
        shares: list[Cost] = []
        singles: list[Cost] = []
        passes: list[Cost] = []
        beside: list[Cost] = []
        for number in range(given.repeats):
            passes.append(forward_cost(shared, source, given.batch))
            pace = passes[-1].wall / given.images * given.batch
            beside.append(beside_cost(shared, source, given.batch, pace))
            shares.append(job_cost(shared, source, root / f"out-{number}", given.batch, given.workers))
            each = [
                job_cost(path, source, root / f"out-{number}-{path.name}", given.batch, given.workers)
                for path in single
            ]
            singles.append(Cost(sum(one.cpu for one in each), sum(one.wall for one in each)))
        print(f"{given.encoder}, {given.images} images of {given.size} px, batches of {given.batch}, one torch thread")
        for what, above, below in (
            (f"{given.tasks} single-task models / one shared model", singles, shares),
            ("whole job / its forward passes", shares, passes),
            ("forward passes with a reader beside / alone", beside, passes),
            ("whole job / forward passes with a reader beside", shares, beside),
        ):
            cpu, wall = (
                min(getattr(cost, kind) for cost in above) / min(getattr(cost, kind) for cost in below)
                for kind in ("cpu", "wall")
            )
            print(f"{what}: CPU time {cpu:.2f}, wall time {wall:.2f}")
        best = min(shares, key=lambda cost: cost.wall)
        stages = ", ".join(f"{name} {100 * seconds / best.wall:.0f} %" for name, seconds in best.stages.items())
        print(f"the job waits for: {stages}")
        if given.memory:
            print(memory(bundle(root / "small", "test_efficientnet", 32, names[:1]), root, 32))


if __name__ == "__main__":
    main()
