"""All that can be named in a study, by the parameter that takes it."""

from oodlib.clustering.clusters import CLUSTERINGS
from oodlib.data.bundled import BUNDLED
from oodlib.data.sets import data_root, stored_names
from oodlib.data.stored import TORCHVISION
from oodlib.scoring.choices import RULES
from oodlib.scoring.distances import DISTANCES
from oodlib.scoring.product import WITH_CLASSIFIER, WITHOUT_CLASSIFIER
from oodlib.scoring.thresholds import THRESHOLDS
from oodlib.study.studies import study_names


def names() -> dict[str, list[str]]:
    """Return the names by parameter; "image sets" stand for id_dataset, near_ood, far_ood and sanity_ood."""
    from oodlib.encoders.architectures import ARCHITECTURES
    from oodlib.encoders.objectives import OBJECTIVES
    from oodlib.encoders.settings import POOLS

    bundled = [name for name in BUNDLED if name != "noise"] + ["noise:SIDE"]
    stored = sorted(stored_names(data_root()) - set(TORCHVISION))
    return {
        "studies": study_names(),
        "image sets": [*bundled, *TORCHVISION, *stored, "folder:PATH[@SIDE]"],
        "arch": ["airbench", "airbench_WIDTH_WIDTH_WIDTH", *ARCHITECTURES, "any name of timm.list_models()"],
        "objective": list(OBJECTIVES),
        "clusterings": list(CLUSTERINGS),
        "distances": list(DISTANCES),
        "thresholds": list(THRESHOLDS),
        "detectors without clusters": list(dict.fromkeys([*WITH_CLASSIFIER, *WITHOUT_CLASSIFIER])),
        "known_outliers": ["numbers of OOD images a class, each for a detector outlier-exposure-NUMBER"],
        "pool": [name for name in POOLS if name],
        "choice_rules": list(RULES),
    }
