"""The CIFAR studies: their smallest run goes through every step, for one epoch on a few made-up images."""

import numpy as np
import pytest
import yaml
from conftest import do_steps

from oodlib.report.published import comparison_table, figures
from oodlib.report.results import collect
from oodlib.study.studies import read_study

SETS = {"cifar100": 20, "tinyimagenet": 20, "dtd10": 10, "mnist": 10, "omniglot": 10}


@pytest.fixture
def made_up(project, monkeypatch):
    """A data root with random images of ten classes under the names of the real sets."""
    generator = np.random.default_rng(0)
    root = project.root / "data"
    root.mkdir()

    def write(name: str, n: int, classes: int) -> None:
        images = generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.savez(root / f"{name}.npz", images=images, labels=np.arange(n) % classes)

    for part, n in {"train": 120, "test": 40}.items():
        write(f"cifar10-{part}", n, 10)
    for name, classes in SETS.items():
        write(f"{name}-test", 40, classes)
    monkeypatch.setenv("OODLIB_DATA", str(root))
    return project


@pytest.mark.parametrize("name", ["cifar-small", "cifar", "cifar-pretrained"])
def test_studies_are_of_six_objectives_two_id_sets_and_three_seeds(name):
    assert len(read_study(name)[0]) == 36


def test_the_smallest_run_goes_through_every_step(made_up):
    study = yaml.safe_load(made_up.read_study("cifar-small"))
    study["parameters"] |= {"seed": 0, "id_dataset": "cifar10", "objective": "ce"}
    smallest = {"epochs": 1, "batch_size": 32, "warmup_epochs": 0.0, "max_images": 40, "choice_rules": []}
    study["when"].append({"if": {"seed": 0}, "set": smallest})
    made_up.write_study("smallest", yaml.safe_dump(study))
    (plan,), _ = read_study("smallest")
    do_steps(plan)
    results = collect("smallest")
    metrics = results.metrics
    groups = metrics.groupby("group").ood_dataset.unique().map(sorted).to_dict()
    assert groups == {
        "near": ["cifar100", "tinyimagenet"],
        "far": ["dtd10", "mnist", "omniglot"],
        "sanity": ["noise:32"],
    }
    assert {f"kmeans-{k}/cosine" for k in (10, 15, 18, 20, 22, 25, 30)} <= set(metrics.detector)
    assert {"msp", "knn", "vim", "fdbd", "energy"} <= set(metrics.detector)
    assert metrics.auroc.between(0, 1).all()
    assert metrics.auroc[metrics.ood_dataset == "cifar100"].mean() == pytest.approx(0.5, abs=0.1)  # all are random
    known = figures().query("id_dataset == 'cifar10' and objective == 'ce' and against == 'near mean'")
    assert len(comparison_table(results)) == len(known)


def test_in_the_pretrained_study_all_start_from_the_same_weights_and_train_the_same_stages():
    for plan in read_study("cifar-pretrained")[0]:
        training = plan.parameters["train"]
        assert (training["arch"], training["pretrained"]) == ("tf_efficientnet_lite0", True)
        assert training["trained"] == "blocks.4"
