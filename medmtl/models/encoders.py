"""Every encoder that a study can name: ``encoder.kind`` chooses; where it is not given, timm's."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from medmtl.models.encoder import TimmConfig
from medmtl.models.slices import SlicesConfig
from medmtl.models.volumes import EfficientNet3dConfig, Vit3dConfig


def _kind(given: Any) -> Any:
    return given.get("kind", "timm") if isinstance(given, dict) else getattr(given, "kind", None)


AnyEncoder = Annotated[
    Annotated[TimmConfig, Tag("timm")]
    | Annotated[SlicesConfig, Tag("slices")]
    | Annotated[EfficientNet3dConfig, Tag("efficientnet_3d")]
    | Annotated[Vit3dConfig, Tag("vit_3d")],
    Discriminator(_kind),
]
