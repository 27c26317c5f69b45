"""What prediction costs: one shared model against one model per task, the whole job against its forward passes, and
memory against the number of images. Every figure is a ratio of two times (or of two peaks) of one run on one machine,
the median of several rounds. CPU time (of this process: not of those that read) tells what the work is, even on a busy
machine; wall time, with one torch thread and a core beside it, what is left of it when reading and writing overlap with
the network: that one needs a machine without other work.

Even then a machine that others share changes its pace by a third from one minute to the next, so what is compared is
measured at the same time: the forward passes alone in pauses of the job, every eighth batch once more, when nothing is
being read or written (so what goes on beside one batch in eight is not counted). Cores share caches, memory and heat,
too. How much is theirs is told by a control: forward passes alone, while a process that has nothing to do with them
reads the same pictures as fast as the network takes them, or is stopped, by turns.

    python benchmarks/inference.py --images 4096 --tasks 3 --size 64 --encoder efficientnet_b0 --batch 32
    python benchmarks/inference.py --bundle runs/NAME/bundle --scans PATCHES    # a bundle of one's own, with its views
"""

import argparse
import io
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.data.case import Case
from medmtl.errors import UserError
from medmtl.fingerprint import read_fingerprint, write_fingerprint
from medmtl.fingerprint.cases import training_fingerprint
from medmtl.inference.forward import Decoded, Model
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


EVERY = 8  # batches
_PAUSE_S = 0.1  # until nothing is being read or written any more


@dataclass(frozen=True)
class Cost:
    """Seconds of one job, and those that its forward passes alone would have taken."""

    cpu: float
    wall: float
    forward_cpu: float
    forward_wall: float
    stages: Mapping[str, float]


@dataclass
class Pauses:
    """Stands before a model's ``decode``, and times every eighth batch by itself before it passes it on."""

    model: Model
    images: int = 0  # of all batches
    timed: int = 0  # of those that were
    cpu: float = 0.0  # of the network on them
    wall: float = 0.0
    spent_cpu: float = 0.0  # in the pauses
    spent_wall: float = 0.0
    batches: int = 0

    def __post_init__(self) -> None:
        self.passed = self.model.decode
        self.model.decode = self  # type: ignore[assignment, method-assign]

    def __call__(self, images: Mapping[str, Tensor]) -> dict[str, Decoded | UserError]:
        self.batches += 1
        self.images += len(images)
        if self.batches % EVERY == 0:
            self._pause(torch.stack(list(images.values())))
        return self.passed(images)

    def _pause(self, batch: Tensor) -> None:
        began, began_cpu = time.perf_counter(), time.process_time()
        time.sleep(_PAUSE_S)
        cpu, wall = time.process_time(), time.perf_counter()
        self.model.members[0].decode(batch)
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        self.timed += len(batch)
        self.spent_cpu += time.process_time() - began_cpu
        self.spent_wall += time.perf_counter() - began


def job_cost(path: Path, source: Path, out: Path, batch: int, workers: int) -> Cost:
    """The whole job: bundle, folder, reading, network, writing, tables."""
    cpu, wall = time.process_time(), time.perf_counter()
    job = Job(path, source, out, device="cpu", batch_size=batch, workers=workers)
    with opened(job, Console(file=io.StringIO())) as session:
        pauses = Pauses(session.work.model)
        summary = session.run()
    assert summary.exit_code == 0
    part = pauses.images / pauses.timed
    stages = dict(session.work.seconds)
    stages["forward"] -= pauses.spent_wall
    return Cost(
        time.process_time() - cpu - pauses.spent_cpu,
        time.perf_counter() - wall - pauses.spent_wall,
        pauses.cpu * part,
        pauses.wall * part,
        stages,
    )


def beside(path: Path, source: Path, batch: int, count: int) -> float:
    """Seconds of forward passes with a process beside that reads, over those without; they take turns."""
    hold_memory()  # as the job does
    loaded = load_bundle(path)
    predictor = Predictor.of(loaded)
    files = sorted(source.rglob("*.png"))[:batch]
    images = torch.stack([loaded.spec.preprocess.apply(read_image(file, channels=3)) for file in files])
    predictor.decode(images)
    began = time.perf_counter()
    predictor.decode(images)
    pace = time.perf_counter() - began
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=read_on, args=(path, source, batch, pace, there), daemon=True)
    process.start()
    seconds = {signal.SIGSTOP: 0.0, signal.SIGCONT: 0.0}
    try:
        here.recv()
        for _ in range(max(2, count // (2 * batch * EVERY))):
            for word in seconds:
                os.kill(process.pid or 0, word)
                began = time.perf_counter()
                for _ in range(EVERY):
                    predictor.decode(images)
                seconds[word] += time.perf_counter() - began
    finally:
        process.kill()
        process.join()
    return seconds[signal.SIGCONT] / seconds[signal.SIGSTOP]


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


def peak(bundle_path: Path, source: Path, out: Path, pipe: "Connection[int, int]") -> None:
    job = Job(bundle_path, source, out, device="cpu", batch_size=32, workers=1)
    with opened(job, Console(file=io.StringIO())) as session:
        assert session.run().exit_code == 0
    status = Path("/proc/self/status").read_text()  # ru_maxrss is that of the parent, if that was larger
    pipe.send(int(status.partition("VmHWM:")[2].split()[0]))


def peak_mib(path: Path, source: Path, out: Path, *, until: float) -> float | None:
    """The most memory that a process of its own held during the job; None if it has not ended ``until`` then."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=peak, args=(path, source, out, there))
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


def tell(jobs: Sequence[Cost], control: Sequence[float]) -> None:
    cpu = median(job.cpu / job.forward_cpu for job in jobs)
    wall = sorted(job.wall / job.forward_wall for job in jobs)
    rounds = ", ".join(f"{ratio:.2f}" for ratio in wall)
    print(f"whole job / its forward passes: CPU time {cpu:.2f}, wall time {median(wall):.2f} (rounds {rounds})")
    print(f"throughput: {100 / median(wall):.0f} % of the forward passes alone")
    print(f"forward passes with an unrelated reader beside / alone: wall time {median(control):.2f}")
    best = min(jobs, key=lambda cost: cost.wall)
    stages = ", ".join(f"{name} {100 * seconds / best.wall:.0f} %" for name, seconds in best.stages.items())
    print(f"the job waits for: {stages}")


def drawn(given: argparse.Namespace, root: Path) -> None:
    """Untrained bundles on drawn pictures."""
    names = [f"task{n}" for n in range(given.tasks)]
    source = scans(root / "scans", given.images, given.size)
    shared = bundle(root / "shared", given.encoder, given.size, names, source)
    single = [bundle(root / name, given.encoder, given.size, [name], source) for name in names if len(names) > 1]
    shares: list[Cost] = []
    singles: list[tuple[float, float]] = []
    control: list[float] = []
    for number in range(given.repeats):
        shares.append(job_cost(shared, source, root / f"out-{number}", given.batch, given.workers))
        control.append(beside(shared, source, given.batch, given.images))
        each = [
            job_cost(path, source, root / f"out-{number}-{path.name}", given.batch, given.workers) for path in single
        ]
        singles.append((sum(one.cpu for one in each), sum(one.wall for one in each)))
    print(f"{given.encoder}, {given.images} images of {given.size} px, batches of {given.batch}, one torch thread")
    if single:
        cpu = median(each[0] / one.cpu for each, one in zip(singles, shares, strict=True))
        wall = median(each[1] / one.wall for each, one in zip(singles, shares, strict=True))
        print(f"{given.tasks} single-task models / one shared model: CPU time {cpu:.2f}, wall time {wall:.2f}")
    tell(shares, control)
    if given.memory:
        print(memory(bundle(root / "small", "test_efficientnet", 32, names[:1]), root, 32))


def own(given: argparse.Namespace, root: Path) -> None:
    """A bundle that is there on a folder that is there."""
    spec = load_bundle(given.bundle).spec
    count = len(list(given.scans.rglob("*.png")))
    jobs: list[Cost] = []
    control: list[float] = []
    for number in range(given.repeats):
        jobs.append(job_cost(given.bundle, given.scans, root / f"out-{number}", given.batch, given.workers))
        control.append(beside(given.bundle, given.scans, given.batch, count // 4))
    print(f"{spec.encoder.name}, views {spec.views}, {count} images, batches of {given.batch}, one torch thread")
    tell(jobs, control)


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
    parser.add_argument("--bundle", type=Path, help="with --scans: in place of drawn pictures and untrained bundles")
    parser.add_argument("--scans", type=Path, help="a folder of PNG files")
    given = parser.parse_args()
    if (given.bundle is None) != (given.scans is None):
        parser.error("--bundle and --scans go together")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (drawn if given.bundle is None else own)(given, Path(folder))


if __name__ == "__main__":
    main()
