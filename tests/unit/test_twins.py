"""A task on volumes is its 2-D twin on images: on one slice, outputs, losses, answers and rows are the same."""

import pytest
import torch

from medmtl.bundle import ModelSpec
from medmtl.data.preprocess import Preprocess
from medmtl.models.decoder import DecoderConfig
from medmtl.models.encoder import TimmConfig
from medmtl.models.encoders import SlicesConfig
from medmtl.models.head import PoolConfig
from medmtl.predictor import Predictor
from medmtl.tasks.classification import Classification
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

TASKS = {
    "score": Regression(low=0, high=85).fit([10.0, 30.0, 35.0]),
    "hidden": Regression(low=0, high=85, pool=PoolConfig(hidden=16)).fit([10.0, 30.0, 35.0]),
    "kind": Classification(classes=("a", "b", "c")).fit([0, 1, 2, 2]),
    "grade": Ordinal(low=0, high=2).fit([0, 1, 2, 2]),
    "ball": Segmentation(classes=("out", "in"), decoder=DecoderConfig(width=8)),
}
MASK = (torch.rand(2, 40, 33, generator=torch.Generator().manual_seed(1)) > 0.7).long()
TARGETS = {
    "score": torch.tensor([20.0, 70.0]),
    "hidden": torch.tensor([20.0, 70.0]),
    "kind": torch.tensor([2, 0]),
    "grade": torch.tensor([1, 2]),
    "ball": MASK,
}


@pytest.fixture(scope="module")
def twins():
    """The same parameters in two and in three dimensions; a kernel is the middle of one with a third axis."""
    torch.manual_seed(0)
    pre = Preprocess(channels=1)
    flat = ModelSpec(preprocess=pre, encoder=TimmConfig(name="test_efficientnet"), tasks=TASKS)
    thick = ModelSpec(preprocess=pre, encoder=SlicesConfig(name="test_efficientnet"), tasks=TASKS)
    planar, solid = flat.build().eval(), thick.build().eval()
    weights = solid.state_dict()
    for key, value in planar.state_dict().items():
        name = key.replace("encoder.", "encoder.planar.", 1) if key.startswith("encoder.") else key
        if weights[name].ndim == value.ndim:
            weights[name] = value
        else:
            weights[name] = torch.zeros_like(weights[name])
            weights[name][:, :, weights[name].shape[2] // 2] = value
    solid.load_state_dict(weights)
    return Predictor(planar, flat), Predictor(solid, thick)


@pytest.mark.parametrize("task", TASKS)
def test_one_slice_is_an_image(twins, task):
    flat, thick = twins
    image, settings, target = torch.randn(2, 1, 40, 33), TASKS[task], TARGETS[task]
    with torch.no_grad():
        plane, volume = flat.model(image)[task], thick.model(image[:, :, None])[task]
    deep = target[:, None] if task == "ball" else target
    volume_as_plane = volume[:, :, 0] if task == "ball" else volume
    torch.testing.assert_close(volume_as_plane, plane, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(settings.loss(volume, deep), settings.loss(plane, target), atol=1e-5, rtol=1e-4)
    a, b = flat.decode(image)[task], thick.decode(image[:, :, None])[task]
    torch.testing.assert_close(b[:, :, 0] if task == "ball" else b, a, atol=1e-4, rtol=1e-4)
    for i in range(2):
        first, second = settings.row(a[i], target[i]), settings.row(b[i], deep[i])
        assert first.keys() == second.keys()
        for name, value in first.items():
            if name.startswith("hd95"):
                continue  # in three dimensions every voxel of a single slice is surface
            assert second[name] == (pytest.approx(value, abs=1e-4, nan_ok=True) if isinstance(value, float) else value)


def test_slices_do_not_mix_before_a_head(twins):
    """A number of a volume is the head's answer to the mean of its slices' features, in any order."""
    _, thick = twins
    volume = torch.randn(1, 1, 5, 40, 33)
    turned = volume[:, :, [3, 0, 4, 1, 2]]
    a, b = thick.decode(volume), thick.decode(turned)
    for task in ("score", "hidden", "kind", "grade"):
        torch.testing.assert_close(a[task], b[task], atol=1e-4, rtol=1e-4)
    repeated = thick.decode(volume[:, :, :1].expand(-1, -1, 4, -1, -1))["score"]
    torch.testing.assert_close(repeated, thick.decode(volume[:, :, :1])["score"], atol=1e-4, rtol=1e-4)
