"""What is installed: the interpreter, packages in their ranges, torch's builds, and what decodes which DICOM file."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from medmtl import __version__
from medmtl.doctor.line import GIB, Line

_PYTHON = (3, 11)


def python() -> Iterator[Line]:
    """The interpreter, and medmtl itself."""
    found = f"{sys.version.split()[0]} on {sys.platform}, medmtl {__version__}"
    if sys.version_info < _PYTHON:
        yield Line("python", "FAIL", found, "install Python 3.11 or newer")
    else:
        yield Line("python", "PASS", found)


def packages(required: Sequence[str] | None = None) -> Iterator[Line]:
    """What medmtl requires (None: as its own metadata say), each in the range that it was made for."""
    wanted = [Requirement(text) for text in (metadata.requires("medmtl") or () if required is None else required)]
    wanted = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    right = []
    for item in wanted:
        how = f'pip install "{item.name}{item.specifier}"'
        try:
            version = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            yield Line(f"package {item.name}", "FAIL", "not installed", how)
            continue
        if item.specifier.contains(version, prereleases=True):
            right.append(f"{item.name} {version}")
        else:
            yield Line(f"package {item.name}", "FAIL", f"{version}; medmtl needs {item.specifier}", how)
    yield Line("packages", "PASS", f"{len(right)} of {len(wanted)} as required: {', '.join(sorted(right))}")


def torchvision() -> Iterator[Line]:
    """Whether torchvision's compiled operators load beside this torch: pip does not notice where they do not."""
    from medmtl.torchvision_ops import declare_missing

    versions = {name: metadata.version(name) for name in ("torch", "torchvision")}
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if not declare_missing():
        yield Line("torchvision", "PASS", found)
        return
    build = versions["torch"].partition("+")[2] or "cpu"
    index = f"https://download.pytorch.org/whl/{build}"
    yield Line(
        "torchvision",
        "WARN",
        f"{found}: its operators are of another build; medmtl uses none of them, other programs may",
        f"pip install --force-reinstall --no-deps torchvision --index-url {index}",
    )


def gpu() -> Iterator[Line]:
    """Each CUDA device computes; or why there is none."""
    import torch

    if not torch.cuda.is_available():
        driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
        if driver and torch.version.cuda is None:
            remedy = "pip install torch --index-url https://download.pytorch.org/whl/cu128"
            yield Line("GPU", "WARN", "a driver is installed, but torch is a build for the CPU alone", remedy)
        elif driver:
            found = f"torch (CUDA {torch.version.cuda}) does not see the device that the driver is for"
            yield Line("GPU", "WARN", found, "update the driver; in a container, start it with --gpus all")
        else:
            yield Line("GPU", "PASS", "none; training runs on the CPU (the recipes that end in _cpu are made for it)")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found = f"{about.name}, {about.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        try:
            ones = torch.ones(64, 64, device=f"cuda:{number}")
            right = bool((ones @ ones == 64).all())
            free = torch.cuda.mem_get_info(number)[0] / GIB
        except RuntimeError as error:
            right, free, found = False, 0.0, f"{found}: {str(error).splitlines()[0]}"
        if right:
            yield Line(f"GPU {number}", "PASS", f"{found}, {free:.0f} GiB free")
        else:
            yield Line(f"GPU {number}", "FAIL", found, "free or reset the device, or install torch for its driver")


def codecs() -> Iterator[Line]:
    """Every transfer syntax that pydicom knows: read, not read for want of a package, or read by nobody."""
    from medmtl.io.dicom.codecs import decoders
    from medmtl.io.dicom.syntax import name_of, package_for

    unread = []
    for syntax, plugins in decoders():
        name = f"codec {name_of(syntax)}"
        if plugins is None:
            unread.append(name_of(syntax))
        elif plugins:
            yield Line(name, "PASS", f"read by {', '.join(plugins)}")
        else:
            package = package_for(syntax)
            remedy = f"pip install {package}" if package else "export these files uncompressed"
            yield Line(name, "FAIL", "no decoder is installed", remedy)
    if unread:
        found = (
            f"{len(unread)} syntaxes, of video, audio or pixels elsewhere, that no package reads: {'; '.join(unread)}"
        )
        yield Line(
            "codecs of streams", "WARN", found, "export such files as single images; ingest refuses them (E-DCM-CODEC)"
        )
