"""What is checked before a study or a step starts: every name, every number, every image set."""

from collections.abc import Iterator
from contextlib import contextmanager

from oodlib.clustering.clusters import CLUSTERINGS
from oodlib.data.sets import ImageSet, data_root, load_images, stored_names
from oodlib.data.sources import BUNDLED, TORCHVISION
from oodlib.files import slug
from oodlib.scoring.choices import RULES, check_rules
from oodlib.scoring.detector import check_alpha
from oodlib.scoring.distances import DISTANCES
from oodlib.scoring.evaluation import FISHER, check_detectors, clusterless_names
from oodlib.scoring.thresholds import THRESHOLDS, check_thresholds
from oodlib.study.studies import NOTEBOOKS, PlannedRun, StudyError, study_names


def check_ood_sets(
    id_dataset: str, near_ood: list[str], far_ood: list[str], sanity_ood: list[str], max_images: int
) -> None:
    """Raise ValueError for no near or far set, one that is there twice or is the ID set, or a negative max_images."""
    if not near_ood + far_ood:
        raise ValueError("near_ood and far_ood are both empty: name at least one OOD set in one of them")
    if max_images < 0:
        raise ValueError(f"max_images must not be negative, got {max_images}")
    ood_sets = near_ood + far_ood + sanity_ood
    files = [slug(name) for name in (id_dataset, *ood_sets)]  # two sets of one file would overwrite each other
    if twice := [name for name in ood_sets if files.count(slug(name)) > 1]:
        raise ValueError(f"OOD set {twice[0]!r} is there twice, or is the ID set {id_dataset!r}")


def check_clusterings(clusterings: list[str], n_clusters: list[int]) -> None:
    """Raise ValueError for an unknown clustering, and for a number of clusters below -1."""
    if unknown := [name for name in clusterings if name not in CLUSTERINGS]:
        raise ValueError(f"unknown clustering {unknown[0]!r}; known: {', '.join(CLUSTERINGS)}")
    if wrong := [k for k in n_clusters if k < -1]:
        raise ValueError(f"n_clusters must be at least 1, 0 (the classes) or -1 (chosen), got {wrong[0]}")


def check_evaluation(
    distances: list[str],
    thresholds: list[str],
    n_neighbors: int,
    known_outliers: list[int],
    alpha: float,
    choice_rules: list[str],
) -> None:
    """Raise ValueError for an unknown name, and for a number that makes no sense, as `evaluate_step` takes them."""
    check_alpha(alpha)
    check_thresholds(thresholds)
    check_rules(choice_rules)
    check_detectors(distances, n_neighbors, known_outliers)


def check_same_classes(training: ImageSet, test: ImageSet) -> None:
    """Raise ValueError where a set's splits have other classes: the same number would then mean two things."""
    if training.classes != test.classes:
        different = sorted(set(training.classes) ^ set(test.classes)) or ["their order"]
        raise ValueError(f"the training and the test split of {test.name} differ in classes: {', '.join(different)}")


def check_runs(runs: list[PlannedRun]) -> None:
    """Check every name that the runs use, load every image set once, and compare with what is there on disk.

    Raises StudyError for the first thing that would fail; nothing is written but images that torchvision fetched.
    """
    sets = set()
    for plan in runs:
        training, embedding = plan.parameters["train"], plan.parameters["embed"]
        with _naming(plan):
            check_ood_sets(training["id_dataset"], **embedding)
            check_clusterings(**plan.parameters["cluster"])
            check_evaluation(**plan.parameters["evaluate"])
            for step in list(NOTEBOOKS)[1:]:  # the first is that of `check_trainings`
                plan.run.is_done(step, plan.parameters[step])
        sets |= {(training["id_dataset"], "test")}
        sets |= {(name, "test") for group in ("near_ood", "far_ood", "sanity_ood") for name in embedding[group]}
    check_trainings(runs)
    _check_sets(sets)


def check_trainings(runs: list[PlannedRun]) -> None:
    """Check of the runs what training them needs, as `check_runs` does: nothing but the training images."""
    from oodlib.encoders.settings import TrainingConfig

    for plan in runs:
        with _naming(plan):
            TrainingConfig(**plan.parameters["train"])
            plan.run.is_done("train", plan.parameters["train"])
    _check_sets({(plan.parameters["train"]["id_dataset"], "train") for plan in runs})


@contextmanager
def _naming(plan: PlannedRun) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StudyError(f"{plan.run.name}: {error}") from error


def _check_sets(sets: set[tuple[str, str]]) -> None:
    for name, split in sorted(sets):
        try:
            load_images(name, split)
        except (ValueError, OSError) as error:
            raise StudyError(str(error)) from error


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
        "detectors without clusters": list(
            dict.fromkeys([*clusterless_names(True), *clusterless_names(False), FISHER])
        ),
        "known_outliers": ["numbers of OOD images a class, each for a detector outlier-exposure-NUMBER"],
        "pool": [name for name in POOLS if name],
        "choice_rules": list(RULES),
    }
