"""Scoring: distances to clusters become scores, scores become decisions. Higher scores are more normal.

A name is imported when it is first asked for: detectors need scikit-learn, whose import takes a second, scores do not.
"""

from importlib import import_module

_NAMES = {
    "classifier_scores": ("LOGIT_SCORES", "activation_limit", "ash", "energy", "fdbd", "gen", "max_logit", "msp", "nci")
    + ("nnguide", "react", "scale"),
    "cluster_detector": ("ClusterDetector",),
    "detector": ("Detector",),
    "distances": ("DISTANCES", "Distance", "nearest_cluster", "nearest_clusters"),
    "drift": ("Drift", "drift_test"),
    "knn": ("KNNDetector",),
    "loading": ("DETECTORS", "load_detector"),
    "outlier_exposure": ("OutlierExposureDetector",),
    "thresholds": ("THRESHOLDS", "Threshold"),
    "vim": ("ViMDetector",),
}
__all__ = sorted(name for names in _NAMES.values() for name in names)


def __getattr__(name: str):
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
