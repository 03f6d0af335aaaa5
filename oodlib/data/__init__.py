"""Data: the name of an image set becomes uint8 images and labels, and any image becomes a network's input."""

from oodlib.data.sets import SPLITS, ImageSet, data_root, load_images, prepare, stored_names, take

__all__ = ["SPLITS", "ImageSet", "data_root", "load_images", "prepare", "stored_names", "take"]
