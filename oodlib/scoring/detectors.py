"""Detectors: all classes whose objects a file can hold, by name, and the function that reads one back."""

from pathlib import Path
from typing import TYPE_CHECKING

from oodlib.scoring.cluster_detector import ClusterDetector
from oodlib.scoring.detector import Detector
from oodlib.scoring.detector_file import read_detector
from oodlib.scoring.references import KNNDetector, OutlierExposureDetector, ViMDetector

if TYPE_CHECKING:
    from oodlib.encoders.encoder import Encoder


def load_detector(path: str | Path, encoder: "Encoder | str | None" = None) -> Detector:
    """Return the detector that its method `save` wrote: scores, p-values and decisions are the same to the last bit.

    encoder: the `Encoder` whose embeddings it shall score, or its fingerprint, which has to be that of the file; by
    default nothing is compared. Raises as `oodlib.scoring.detector_file.read_detector`.
    """
    return read_detector(path, DETECTORS, encoder)


DETECTORS = {kind.__name__: kind for kind in (ClusterDetector, KNNDetector, ViMDetector, OutlierExposureDetector)}
