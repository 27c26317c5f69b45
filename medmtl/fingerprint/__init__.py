"""What a model was trained on, in a few numbers: is a new image one of those that its results were measured on?

A *fingerprint* holds the range of every property of a study's images (size, voxel size, intensities, modality) and how
some hundred of them look to a network (brightness, colours, noise, sharpness; of volumes, where what is bright lies).
It is made when a bundle is, stored beside its weights with its hash in the specification's provenance, and compared
with every input that the bundle is asked about.

Nothing of it depends on the weights, so training cases serve as well as held-out ones. Pooled features of the encoder's
last stage, which format 1 compared, noticed little of what ``benchmarks/gate.py`` does to pictures: training makes them
invariant. What is made with a model is in ``cases.py``, which this package does not import: comparing needs none.
"""

from medmtl.fingerprint.facts import Facts, look
from medmtl.fingerprint.files import FILE, FORMAT, KEY, read_fingerprint, write_fingerprint
from medmtl.fingerprint.gauge import GROUPS, LEVEL, Gauge, calibrated, conformal_quantile, level_of
from medmtl.fingerprint.known import Fingerprint, Level, Verdict, compare, fingerprint

__all__ = [
    "FILE",
    "FORMAT",
    "GROUPS",
    "KEY",
    "LEVEL",
    "Facts",
    "Fingerprint",
    "Gauge",
    "Level",
    "Verdict",
    "calibrated",
    "compare",
    "conformal_quantile",
    "fingerprint",
    "level_of",
    "look",
    "read_fingerprint",
    "write_fingerprint",
]
