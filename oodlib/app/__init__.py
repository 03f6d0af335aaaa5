"""App: a detector for your own images: the workflow of notebook 06, the gallery, the deployed model, drift."""

from oodlib.app.drift import Drift, drift_test
from oodlib.app.model import OODModel, Predictions

__all__ = ["Drift", "OODModel", "Predictions", "drift_test"]
