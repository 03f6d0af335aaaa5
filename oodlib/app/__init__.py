"""App: a detector for your own images: the workflow of notebook 06, the gallery, the page, the deployed model."""

from oodlib.app.model import OODModel, Predictions

__all__ = ["OODModel", "Predictions"]
