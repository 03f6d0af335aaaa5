"""Encoders: images become embeddings. Architectures, weights, views, objectives, training and embedding."""

from oodlib.encoders.architectures import ARCHITECTURES
from oodlib.encoders.embedding import embed, embed_images, knn_accuracy, linear_probe, load_embeddings, save_embeddings
from oodlib.encoders.encoder import Encoder, EncoderSpec, load_encoder, save_encoder
from oodlib.encoders.objectives import OBJECTIVES, Objective
from oodlib.encoders.settings import TrainingConfig

__all__ = [
    "ARCHITECTURES",
    "OBJECTIVES",
    "Encoder",
    "EncoderSpec",
    "Objective",
    "TrainingConfig",
    "embed",
    "embed_images",
    "knn_accuracy",
    "linear_probe",
    "load_embeddings",
    "load_encoder",
    "save_embeddings",
    "save_encoder",
]
