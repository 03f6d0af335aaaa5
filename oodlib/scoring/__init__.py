"""Scoring: distances to clusters become scores, scores become decisions. Higher scores are more normal."""

from oodlib.scoring.classifier_scores import activation_limit, ash, fdbd, nci, nnguide, react, scale
from oodlib.scoring.detectors import (
    DETECTORS,
    ClusterDetector,
    Detector,
    KNNDetector,
    OutlierExposureDetector,
    ViMDetector,
    load_detector,
)
from oodlib.scoring.distances import DISTANCES, Distance, nearest_cluster, nearest_clusters
from oodlib.scoring.logit_scores import LOGIT_SCORES, energy, gen, max_logit, msp
from oodlib.scoring.thresholds import THRESHOLDS, Threshold

__all__ = [
    "DETECTORS",
    "DISTANCES",
    "LOGIT_SCORES",
    "THRESHOLDS",
    "ClusterDetector",
    "Detector",
    "Distance",
    "KNNDetector",
    "OutlierExposureDetector",
    "Threshold",
    "ViMDetector",
    "activation_limit",
    "ash",
    "energy",
    "fdbd",
    "gen",
    "load_detector",
    "max_logit",
    "msp",
    "nci",
    "nearest_cluster",
    "nearest_clusters",
    "nnguide",
    "react",
    "scale",
]
