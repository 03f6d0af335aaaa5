"""Loading: a file that the method `save` of a detector wrote becomes that detector again."""

from pathlib import Path
from typing import TYPE_CHECKING

from oodlib.scoring.cluster_detector import ClusterDetector
from oodlib.scoring.detector import Detector
from oodlib.scoring.detector_file import read_detector
from oodlib.scoring.knn import KNNDetector
from oodlib.scoring.outlier_exposure import OutlierExposureDetector
from oodlib.scoring.vim import ViMDetector

if TYPE_CHECKING:  # it brings torch and timm
    from oodlib.encoders.encoder import Encoder

DETECTORS = {kind.__name__: kind for kind in (ClusterDetector, KNNDetector, ViMDetector, OutlierExposureDetector)}


def load_detector(path: str | Path, encoder: "Encoder | str | None" = None) -> Detector:
    """Return the detector that its method `save` wrote: scores, p-values and decisions are the same to the last bit.

    encoder: the `oodlib.encoders.Encoder` whose embeddings it shall score, or its fingerprint, which has to be that of
    the file; by default nothing is compared. The fingerprint in the file, or "", is the detector's `encoder_`. Raises
    FileNotFoundError, or ValueError when the file is cut short, foreign, of another format, does not hold what a fit
    leaves, or comes from another encoder. The file cannot run code.
    """
    return read_detector(path, DETECTORS, encoder)
