"""Published figures beside hand-made ones, and the catalogue of image sets."""

from dataclasses import replace

from oodlib.data.catalogue import display_name, look_up
from oodlib.report import tables
from oodlib.report.published import absent_sets, comparison_table, figures, with_accuracy

CIFAR = {"cifar100": "near", "tinyimagenet": "near", "mnist": "far", "noise:32": "sanity"}


def test_own_figures_stand_beside_published_ones_near_and_far(make_results):
    def auroc(ood, seed, **_):
        return {"cifar100": 0.7, "tinyimagenet": 0.8, "mnist": 0.9}.get(ood, 1.0) + 0.01 * seed

    detectors = (("labels", 10, "mahalanobis"), ("one", 1, "ssd"), ("none", 0, "knn"))
    objectives = ("ce", "supcon", "simclr")
    results = make_results(auroc, id_datasets=("cifar10",), ood=CIFAR, detectors=detectors, objectives=objectives)
    table = comparison_table(results)
    assert table.shape[1] == 8
    assert table.drop(columns=["ID set", "source"]).to_numpy().tolist() == [
        ["ce: MDS", "84.2", "76.0 ± 1.0", "89.7", "91.0 ± 1.0", "95.1 / 91.0 ± 1.0, n = 3"],
        ["ce: KNN", "90.6", "76.0 ± 1.0", "93.0", "91.0 ± 1.0", "95.1 / 91.0 ± 1.0, n = 3"],
        ["simclr: SSD, CIFAR-100 alone", "90.6", "71.0 ± 1.0", "", "", "– / 91.0 ± 1.0, n = 3"],
        ["supcon: CSI, labelled, CIFAR-100 alone", "90.6", "71.0 ± 1.0", "", "", "– / 91.0 ± 1.0, n = 3"],
        ["supcon: KNN+, mean of 5 sets", "", "", "98.0", "91.0 ± 1.0", "– / 91.0 ± 1.0, n = 3"],
    ]
    assert table.source[0] == "OpenOOD 1.5, ResNet-18, 100 epochs"
    assert comparison_table(replace(results, runs=results.runs.assign(pretrained=True))).empty  # another class
    assert comparison_table(make_results()).empty


def test_pretrained_networks_stand_beside_published_ones_that_are(make_results):
    ood = {"cifar10": "near", "mnist": "far"}
    results = make_results(id_datasets=("cifar100",), ood=ood, detectors=(("labels", 100, "mahalanobis"),))
    table = comparison_table(replace(results, runs=results.runs.assign(pretrained="imagenet")))
    assert table.source.tolist() == ["ViT-L/16, pretrained on ImageNet-21k"]


def test_figures_are_percentages_once_each_with_the_accuracy_of_their_source():
    table = figures()
    assert table.published.between(0, 100).all()
    keys = ["id_dataset", "against", "objective", "detector", "source", "network", "method"]
    assert not table.duplicated(keys).any()
    known = with_accuracy().dropna(subset="accuracy")
    assert set(known.source) == {"OpenOOD 1.5"}
    assert known.groupby("id_dataset").accuracy.unique().map(list).to_dict() == {
        "cifar10": [95.06],
        "cifar100": [77.25],
    }
    assert set(known.objective) == {"ce"}
    assert len(known) == 50


def test_far_sets_of_the_literature_that_a_study_lacks_are_named(make_results):
    results = make_results(id_datasets=("cifar10", "digits"), ood=CIFAR | {"folder:sets/LSUN": "far", "svhn": "far"})
    assert absent_sets(results, "cifar10") == ["isun", "places365"]
    assert absent_sets(results, "digits") == []


def test_sets_of_a_study_have_a_source_terms_and_what_must_be_known(make_results):
    ood = {"tinyimagenet": "near", "dtd10": "far", "noise:32": "sanity", "folder:mine": "far"}
    results = make_results(id_datasets=("cifar10", "cifar100"), ood=ood)
    whole = results.runs.assign(clustering="none", measure="rankme", size=45000, value=1.0)
    metrics = results.metrics.assign(n_id=10000, n_ood=1200)
    results = replace(results, metrics=metrics, clusters=whole)
    table = tables.data_table(results).set_index("set")
    assert "in ImageNet" not in table
    assert table.loc["CIFAR-10", ["part", "images"]].tolist() == ["ID", "45000 training, 10000 test"]
    assert table.loc["DTD (10 classes)", ["part", "images"]].tolist() == ["far OOD of CIFAR-10, CIFAR-100", "1200 test"]
    assert table.loc["noise 32", "source"] == "computed"
    assert table.loc["folder:mine", "source"] == ""
    pretrained = tables.data_table(replace(results, runs=results.runs.assign(pretrained="imagenet")))
    assert pretrained.set_index("set")["in ImageNet"]["Tiny ImageNet"] == look_up("tinyimagenet").in_imagenet != ""


def test_the_catalogue_names_classes_and_takes_what_is_not_in_it():
    assert len(look_up("cifar10").classes) == 10
    assert (display_name("folder:mine"), look_up("folder:mine").classes) == ("folder:mine", ())
    assert display_name("noise:8") == "noise 8"
