"""A MONAI Bundle: the network as TorchScript, our preprocessing as MONAI's transforms, and a workflow that runs them.

https://docs.monai.io/en/stable/mb_specification.html. The configuration needs no engine (pytorch-ignite), and the model
file is no pickle. What MONAI's transforms cannot express is refused by name (``E-EXP-MONAI``).
"""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor

from medmtl.bundle import CARD, Bundle
from medmtl.data.normalise import FixedNormalise, ForegroundNormalise, ImageNormalise
from medmtl.data.preprocess import Preprocess, centre
from medmtl.errors import UserError
from medmtl.export.formats import FORMATS
from medmtl.export.network import Choice, Portable, example_inputs
from medmtl.files import write_atomic

MODEL, METADATA, INFERENCE = Path("models/model.ts"), Path("configs/metadata.json"), Path("configs/inference.json")
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def write_monai(folder: Path, bundle: Bundle, network: Portable, choice: Choice, about: Mapping[str, Any]) -> None:
    """Write the bundle's files below ``folder``; ``network`` is one that takes the image alone."""
    inference = inference_config(bundle.spec.preprocess, choice)
    FORMATS["torchscript"].write(network, example_inputs(network, bundle.spec, choice), about, folder / MODEL)
    write_atomic(folder / METADATA, json.dumps(metadata(bundle, choice, about), indent=2) + "\n")
    write_atomic(folder / INFERENCE, json.dumps(inference, indent=2) + "\n")
    card = bundle.folder / CARD
    write_atomic(folder / "docs" / CARD, card.read_bytes() if card.is_file() else f"# {bundle.id}\n\n{about['use']}\n")


def inference_config(preprocess: Preprocess, choice: Choice) -> dict[str, Any]:
    """``python -m monai.bundle run --config_file OUT/configs/inference.json --bundle_root OUT --dataset_dir IMAGES``.

    Writes one NumPy array for every image and task, ``<output_dir>/<image>.<task>.npy``: the decoded output.
    """
    return {
        # MONAI's "from" takes an attribute of what is imported, and PIL does not import this part of itself
        "imports": ["$import pathlib", "$import numpy", "$import torch", "$import PIL.ImageOps as ImageOps"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$sorted(str(path) for path in pathlib.Path(@dataset_dir).iterdir()"
        f" if path.suffix.lower() in {_SUFFIXES!r})",
        "names": "$[pathlib.Path(path).name for path in @datalist]",
        "preprocessing": {"_target_": "Compose", "transforms": transforms(preprocess)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "network_def": f"$torch.jit.load(@bundle_root + '/{MODEL.as_posix()}', map_location=@device).eval()",
        "inferer": {"_target_": "SimpleInferer"},
        "initialize": ["$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)"],
        "run": [
            "$[numpy.save(@output_dir + '/' + name + '.' + task + '.npy', value[0].cpu().numpy())"
            " for name, item in zip(@names, @dataset)"
            " for task, value in @inferer(item['image'][None].to(@device), @network_def).items()]"
        ],
    }


def transforms(preprocess: Preprocess) -> list[dict[str, Any]]:
    """:meth:`Preprocess.read` and :meth:`Preprocess.apply` of an 8-bit image as MONAI's dictionary transforms."""
    _refuse_inexpressible(preprocess)
    grey = preprocess.channels == 1
    steps = [
        _step("LoadImaged", reader="PILReader", reverse_indexing=False, converter="$ImageOps.exif_transpose"),
        _step("EnsureChannelFirstd", channel_dim="no_channel" if grey else -1),
        _step("ScaleIntensityRanged", a_min=0.0, a_max=255.0, b_min=0.0, b_max=1.0),
    ]
    if preprocess.resize:
        size = list(preprocess.resize)  # MONAI's Resize smooths before it shrinks, or not at all: not torch's antialias
        steps.append(
            _step(
                "Lambdad",
                func=f"$lambda image: image if list(image.shape[1:]) == {size} else torch.nn.functional.interpolate("
                f"image[None], size={size}, mode='bilinear', antialias=True)[0].clamp(0, 1)",
            )
        )
    if preprocess.window:
        if preprocess.resize and preprocess.pad:
            steps += _border(preprocess.resize, preprocess.window)
        steps.append(_step("CenterSpatialCropd", roi_size=list(preprocess.window)))
    match preprocess.normalise:
        case FixedNormalise(mean=mean, std=std):
            one = {"subtrahend": list(mean), "divisor": list(std)}
            steps.append(_step("NormalizeIntensityd", channel_wise=True, **one))
        case ImageNormalise(per_channel=per_channel):
            steps.append(_step("NormalizeIntensityd", channel_wise=per_channel))
    return [*steps, _step("EnsureTyped", dtype="$torch.float32", track_meta=False)]


def _step(kind: str, **options: Any) -> dict[str, Any]:
    return {"_target_": kind, "keys": "image", **options}


def _border(size: Sequence[int], window: Sequence[int]) -> list[dict[str, Any]]:
    """Zeros around an image of known ``size`` that is smaller than the window, as our ``pad`` places them."""
    border: list[int] = []
    for length, wanted in zip(size, window, strict=True):
        before = max(centre(wanted, length), 0) if wanted > length else 0
        border += [before, max(wanted - length, 0) - before]
    return [_step("BorderPadd", spatial_border=border, mode="constant", value=0.0)] if any(border) else []


def _refuse_inexpressible(preprocess: Preprocess) -> None:
    """E-EXP-MONAI for the first step of the preprocessing that MONAI has no transform for."""
    found = {
        "volume": (preprocess.volume, "MONAI turns, resamples and scales volumes by other rules"),
        "patches": (preprocess.patches, "MONAI's sliding windows do not average classes and numbers"),
        "highlights": (preprocess.highlights, "MONAI fills no specular highlights"),
        "pad": (preprocess.pad and preprocess.resize is None, "MONAI pads odd sizes by one pixel elsewhere"),
        "normalise": (
            isinstance(preprocess.normalise, ForegroundNormalise),
            "MONAI's normalisation of the foreground leaves the background at 0",
        ),
    }
    for key, (present, why) in found.items():
        if present:
            raise UserError(
                "E-EXP-MONAI",
                f"preprocess.{key} has no equal among MONAI's transforms: {why}",
                "export it as torchscript or onnx, and preprocess as the file's description says",
                where="--format monai",
            )


def metadata(bundle: Bundle, choice: Choice, about: Mapping[str, Any]) -> dict[str, Any]:
    """``configs/metadata.json``; ``medmtl`` holds our own description beside the fields that MONAI's schema knows."""
    channels = bundle.spec.preprocess.channels
    image = {
        "type": "image",
        "format": "RGB" if channels == 3 else "magnitude",
        "modality": "n/a",
        "num_channels": channels,
        "spatial_shape": list(choice.size),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": dict(enumerate("RGB")) if channels == 3 else {"0": "image"},
    }
    outputs = {name: _output(answer, choice) for name, answer in about["tasks"].items()}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from medmtl bundle {bundle.id}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"pillow": _version("pillow")},
        "name": f"medmtl {bundle.id}",
        "task": ", ".join(f"{name} ({answer['kind']})" for name, answer in about["tasks"].items()),
        "description": "One network for several tasks; outputs are decoded: probabilities and values, by task.",
        "authors": "see docs/README.md",
        "copyright": "see docs/README.md",
        "intended_use": about["use"],
        "network_data_format": {"inputs": {"image": image}, "outputs": outputs},
        "medmtl": dict(about),
    }


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _output(answer: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    classes = answer.get("classes", ["value"])
    dense = "*size" in answer["output"]
    return {
        "type": "image" if dense else "tuples",
        "format": "segmentation" if answer["kind"] in ("segmentation", "annotators") else answer["kind"],
        "num_channels": len(classes),
        "spatial_shape": list(choice.size) if dense else [],
        "dtype": "float32",
        "value_range": [answer["low"], answer["high"]] if "low" in answer else [0, 1],
        "is_patch_data": False,
        "channel_def": {str(i): name for i, name in enumerate(classes)},
    }


def run_monai(folder: Path, images: Sequence[Path], out: Path, tasks: Sequence[str]) -> list[dict[str, Tensor]]:
    """The answers of ``monai.bundle`` to image files, read back from what it wrote below ``out``."""
    from monai.bundle import ConfigWorkflow  # imports half of MONAI: only for this format

    names = [str(number) for number in range(len(images))]
    workflow = ConfigWorkflow(
        config_file=str(folder / INFERENCE),
        meta_file=str(folder / METADATA),
        workflow_type="inference",
        bundle_root=str(folder),
        device="cpu",
        datalist=[str(path) for path in images],
        names=names,
        output_dir=str(out),
    )
    workflow.initialize()
    workflow.run()
    return [{task: torch.from_numpy(np.load(out / f"{name}.{task}.npy"))[None] for task in tasks} for name in names]
