"""A bundle as an MLflow model: MLflow keeps a copy of this file and runs it to load the bundle; nothing is pickled."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from medmtl.bundle import load_bundle
from medmtl.errors import UserError
from medmtl.predictor import Predictor


class BundleModel(PythonModel):
    """``images [B, H, W, C] -> one row per image``; the bundle does its own preprocessing."""

    def load_context(self, context: Any) -> None:
        """Read the bundle that was logged with the model."""
        self.predictor = Predictor.of(load_bundle(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict uint8 images, or float ones whose values lie between 0 and 1."""
        return self.predictor.arrays(checked(np.asarray(model_input)))


def checked(images: np.ndarray) -> np.ndarray:
    """``images`` as uint8 or float32; integers outside 0..255 and floats outside 0..1 (1 is white) are refused."""
    if images.ndim not in (4, 5):
        raise UserError(
            "E-MODEL-INPUT",
            f"images have the shape {images.shape}",
            "give [batch, height, width, channels], volumes [batch, depth, height, width, channels]",
        )
    floating = np.issubdtype(images.dtype, np.floating)
    highest = 1 if floating else 255  # a server parses JSON integers as int64
    inside = images.size == 0 or (images.min() >= 0 and images.max() <= highest)  # False where a value is NaN
    if not np.issubdtype(images.dtype, np.number) or not inside:
        raise UserError(
            "E-MODEL-INPUT",
            f"{images.dtype} images leave the range 0..{highest}",
            "give uint8, or floats between 0 and 1",
        )
    return images.astype(np.float32 if floating else np.uint8)


mlflow.models.set_model(BundleModel())
