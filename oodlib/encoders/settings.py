"""Settings: every choice that decides the weights of a training, checked when it is made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from oodlib.encoders.architectures import check_arch
from oodlib.encoders.objectives import OBJECTIVES
from oodlib.encoders.views import Views

ALL, HEADS = "all", "heads"  # values of the parameter `trained`; any other is the name of a stage
POSITIVE = ("epochs", "batch_size", "learning_rate", "checkpoint_epochs", "norm_bias_factor")
SHARES = ("momentum", "label_smoothing", "prototype_decay")  # in [0, 1)
POOLS = ("", "token", "avg")
SCHEDULES = ("cosine", "triangle")
VIEWS = ("crop", "translate", "flip", "jitter", "grayscale", "rotate", "blur", "erase")


@dataclass(frozen=True)
class TrainingConfig:
    """Every choice that decides the weights. Names and defaults are those of the parameters of notebook 01.

    The optimiser is SGD with Nesterov's `momentum`; `schedule` is "cosine" or "triangle" (`optimisation`), and the
    biases of normalisation get `norm_bias_factor` times the rate. `lookahead` averages the weights on the way.
    0 takes the objective's usual `temperature` and `n_views` (of an image), and the ID set's own side as `input_size`.
    The temperature of cross-entropy divides the logits of its loss, not those that are scored.
    `projection_dim` is the width behind the head of a contrastive objective; with 0 it has no head and works on the
    embedding itself. `ce_weight` is the λ of "joint", `compactness_weight` and `prototype_decay` are CIDER's.
    0 switches off `label_smoothing` and `clip_norm` (the largest norm of the gradient).
    `patch_size` and `pool` are for vision transformers. `pretrained` starts from ImageNet's weights, and `trained` is
    "all", "heads", or the first stage of the backbone that is trained. `half` keeps the weights in half precision.
    `crop` to `erase` are the arguments of `Views`, except that `alternate_flip` mirrors the drawn images in every other
    epoch and the rest in the others, and `mirrored` embeds the mean of an image and its mirror image.
    A checkpoint is written every `checkpoint_epochs`, an encoder to look back at every `snapshot_epochs`.
    Raises ValueError naming the allowed values.
    """

    id_dataset: str = "digits"
    arch: str = "airbench_16_32_64"
    objective: str = "ce"
    seed: int = 0
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.2
    momentum: float = 0.85
    weight_decay: float = 0.001
    norm_bias_factor: float = 64.0
    schedule: str = "triangle"
    warmup_epochs: float = 4.0
    lookahead: bool = True
    temperature: float = 0.0
    n_views: int = 0
    projection_dim: int = 128
    label_smoothing: float = 0.0
    ce_weight: float = 1.0
    compactness_weight: float = 2.0
    prototype_decay: float = 0.95
    clip_norm: float = 0.0
    input_size: int = 16
    patch_size: int = 0
    pool: str = ""
    pretrained: bool = False
    trained: str = ALL
    half: bool = False
    checkpoint_epochs: int = 1
    snapshot_epochs: int = 0
    calibration_fraction: float = 0.1
    crop: float = 0.7
    translate: int = 1
    flip: float = 0.0
    alternate_flip: bool = False
    mirrored: bool = False
    jitter: float = 0.0
    grayscale: float = 0.0
    rotate: float = 0.0
    blur: float = 0.0
    erase: float = 0.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, object]) -> "TrainingConfig":
        """Return the configuration that a notebook's names hold; what is not there keeps its default."""
        return cls(**{field.name: parameters[field.name] for field in fields(cls) if field.name in parameters})

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            allowed = (int, float) if kind is float else kind
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed):
                raise ValueError(f"{field.name} must be of type {kind.__name__}, got {value!r}")  # YAML's 1e-3 is a str
            if kind in (int, float) and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be finite and not negative, got {value}")
        check_arch(self.arch, self.pretrained)
        for name, known in (("objective", OBJECTIVES), ("pool", POOLS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                options = ", ".join(option or "''" for option in known)
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {options}")
        for name in POSITIVE:
            if not getattr(self, name):
                raise ValueError(f"{name} must be positive, got 0")
        for name in SHARES:
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        if OBJECTIVES[self.objective].pairs and self.n_views not in (0, 2):
            raise ValueError(f"objective {self.objective!r} compares two views of an image: n_views is {self.n_views}")
        if self.alternate_flip and not self.flip:
            raise ValueError("alternate_flip mirrors images: give flip, too, as 0.5")
        if not 0 < self.calibration_fraction < 1:
            raise ValueError(f"calibration_fraction must be between 0 and 1, got {self.calibration_fraction}")
        _ = self.views  # which checks its own arguments

    @property
    def views(self) -> Views:
        """Return what draws the views."""
        return Views(**{name: getattr(self, name) for name in VIEWS})
