"""Study: a YAML file becomes runs, each run goes through the steps, and each step leaves artefacts on disk."""

from oodlib.study.parameters import take_parameters
from oodlib.study.run import Run

__all__ = ["Run", "take_parameters"]
