"""How long a folder of CT series takes to become NIfTI files: ``medmtl ingest`` and its peers in one run.

    python benchmarks/ingest_throughput.py [--series 12] [--slices 60] [--peers dcm2niix-gz ...] [--rounds 1] [--out F]

medmtl is run as a user runs it, starting included, with everything on: headers checked, de-identified, sidecars,
manifest, reports, thumbnails, gzip. The peers write volumes only. ``-raw`` (of medmtl: ``--uncompressed``) is without
gzip. Files are in the page cache. Memory is the largest sum of resident sizes over all processes of a program, sampled
every 50 ms; pages that processes share count more than once. The peers come with ``pip install 'medmtl[bench]'``.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from medmtl.data.synthetic.dicom import write_ct_series

PEERS = ["dcm2niix-raw", "dcm2niix-gz", "simpleitk-raw", "simpleitk-gz", "dicom2nifti"]
SITK = """
import sys
from pathlib import Path
import SimpleITK as sitk
source, out, suffix = sys.argv[1:]
for n, folder in enumerate(sorted(Path(source).iterdir())):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), f"{out}/{n}{suffix}", useCompression=suffix.endswith("gz"))
"""
DICOM2NIFTI = """
import sys
from pathlib import Path
import dicom2nifti
source, out = sys.argv[1:]
for n, folder in enumerate(sorted(Path(source).iterdir())):
    dicom2nifti.dicom_series_to_nifti(str(folder), f"{out}/{n}.nii.gz")
"""


def commands(source: Path, out: Path) -> dict[str, list[str]]:
    """What is run for each program. ``-z i``: dcm2niix's own gzip, on one core; ``-z y``: pigz, if it is installed."""
    python, dcm2niix = sys.executable, str(Path(sys.executable).with_name("dcm2niix"))
    found = {
        "medmtl": [python, "-m", "medmtl", "ingest", str(source), str(out / "study")],
        "medmtl-raw": [python, "-m", "medmtl", "ingest", str(source), str(out / "study"), "--uncompressed"],
        "medmtl again": [python, "-m", "medmtl", "ingest", str(source), str(out / "study")],
        "dcm2niix-raw": [dcm2niix, "-z", "n", "-f", "%s_%j", "-o", str(out), str(source)],
        "dcm2niix-gz": [dcm2niix, "-z", "i", "-f", "%s_%j", "-o", str(out), str(source)],
        "simpleitk-raw": [python, "-c", SITK, str(source), str(out), ".nii"],
        "simpleitk-gz": [python, "-c", SITK, str(source), str(out), ".nii.gz"],
        "dicom2nifti": [python, "-c", DICOM2NIFTI, str(source), str(out)],
    }
    if shutil.which("pigz"):
        found["dcm2niix-pigz"] = [dcm2niix, "-z", "y", "-f", "%s_%j", "-o", str(out), str(source)]
    return found


@dataclass(frozen=True)
class Measured:
    seconds: float
    cpu_seconds: float  # of all processes; the last 50 ms of each may be missing
    peak_mib: float
    volumes: int
    written_mib: float


def measure(command: Sequence[str], out: Path) -> Measured:
    """Run ``command``; a program that fails, or writes nothing, is an error and not a fast one."""
    began = time.perf_counter()
    peak, cpu = 0, Counter[int]()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, _sample(process.pid, cpu))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        said = process.stderr.read() if process.stderr else ""
    images = [path for path in out.rglob("*") if path.name.endswith((".nii", ".nii.gz"))]
    if process.returncode or not images:
        raise SystemExit(f"{' '.join(command)[:200]}: exit {process.returncode}, {len(images)} images\n{said[-2000:]}")
    written = sum(path.stat().st_size for path in images) / 2**20
    return Measured(seconds, cpu.total(), peak / 2**20, len(images), written)


def _sample(pid: int, cpu: Counter[int]) -> int:
    """Resident bytes of a process and its children now; their seconds of CPU so far go into ``cpu`` by process."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
                times = process.cpu_times()
                cpu[process.pid] = times.user + times.system  # type: ignore[assignment] # typed for whole numbers
    return total


def run(source: Path, scratch: Path, names: Sequence[str], rounds: int) -> dict[str, Measured]:
    """The best of ``rounds`` for each program, in turn, so that a slow minute hits all alike."""
    best: dict[str, Measured] = {}
    for _ in range(rounds):
        out = scratch / "medmtl"
        for name in names:
            if name != "medmtl again":
                out = scratch / name
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
            measured = measure(commands(source, out)[name], out)
            if name not in best or measured.seconds < best[name].seconds:
                best[name] = measured
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=12)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        for n in range(options.series):
            write_ct_series(source / f"series{n:02d}", slices=options.slices, size=options.size, seed=n)
        names = ["medmtl", "medmtl again", "medmtl-raw", *options.peers]
        if shutil.which("pigz"):
            names.append("dcm2niix-pigz")
        best = run(source, Path(folder), names, options.rounds)
    voxels = options.size**2 * options.slices * 2 * options.series / 2**20
    print(f"{options.series} series of {options.size} x {options.size} x {options.slices} ({voxels:.0f} MiB), "
          f"{len(os.sched_getaffinity(0))} cores")  # fmt: skip
    heads = ("seconds", "of medmtl", "CPU s", "MiB/s", "peak MiB", "volumes", "written MiB")
    print(f"{'':16}" + "".join(f"{head:>12}" for head in heads))
    for name, m in best.items():
        cells = (
            f"{m.seconds:.2f}",
            f"{m.seconds / best['medmtl'].seconds:.2f}x",
            f"{m.cpu_seconds:.2f}",
            f"{voxels / m.seconds:.0f}",
            f"{m.peak_mib:.0f}",
            str(m.volumes),
            f"{m.written_mib:.0f}",
        )
        print(f"{name:16}" + "".join(f"{cell:>12}" for cell in cells))
    if options.out:
        options.out.write_text(json.dumps({name: asdict(m) for name, m in best.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
