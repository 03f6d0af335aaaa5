"""Published figures beside hand-made ones."""

from oodlib.report.published import absent_sets, comparison_table, figures

CIFAR = {"cifar100": "near", "tinyimagenet": "near", "mnist": "far", "noise:32": "sanity"}


def test_own_figures_are_means_over_the_sets_of_a_group_and_over_seeds(make_results):
    def auroc(ood, seed, **_):
        return {"cifar100": 0.7, "tinyimagenet": 0.8, "mnist": 0.9}.get(ood, 1.0) + 0.01 * seed

    detectors = (("labels", 10, "mahalanobis"), ("one", 1, "ssd"), ("none", 0, "knn"))
    objectives = ("ce", "supcon", "simclr")
    results = make_results(auroc, id_datasets=("cifar10",), ood=CIFAR, detectors=detectors, objectives=objectives)
    table = comparison_table(results)
    columns = ["id_dataset", "against", "objective", "method", "published", "this study", "n"]
    assert table[columns].to_numpy().tolist() == [
        ["cifar10", "near mean", "ce", "MDS", 84.2, "76.0 ± 1.0", 3],
        ["cifar10", "far mean", "ce", "MDS", 89.7, "91.0 ± 1.0", 3],
        ["cifar10", "near mean", "ce", "KNN", 90.6, "76.0 ± 1.0", 3],
        ["cifar10", "far mean", "ce", "KNN", 93.0, "91.0 ± 1.0", 3],
        ["cifar10", "cifar100", "simclr", "SSD", 90.6, "71.0 ± 1.0", 3],  # of one set: that set
        ["cifar10", "cifar100, FPR95", "simclr", "SSD", 50.8, "29.0 ± 1.0", 3],  # one less AUROC here
        ["cifar10", "cifar100", "supcon", "CSI, labelled", 90.6, "71.0 ± 1.0", 3],
        ["cifar10", "far mean", "supcon", "KNN+, mean of 5 sets", 97.96, "91.0 ± 1.0", 3],
        ["cifar10", "far mean, FPR95", "supcon", "KNN+, mean of 5 sets", 11.05, "9.0 ± 1.0", 3],
        ["cifar10", "ID accuracy", "ce", "", 95.0, "91.0 ± 1.0", 3],  # of a ResNet-50
        ["cifar10", "ID accuracy", "supcon", "", 96.0, "91.0 ± 1.0", 3],
        ["cifar10", "ID accuracy", "simclr", "", 93.6, "91.0 ± 1.0", 3],
        ["cifar10", "ID accuracy", "ce", "", 95.06, "91.0 ± 1.0", 3],  # of OpenOOD's ResNet-18
    ]
    assert set(table["our setting"]) == {"resnet20, 2 epochs, ID accuracy 91.0 %"}
    assert table["their setting"][0] == "OpenOOD 1.5, ResNet-18, CE, 100 epochs"


def test_a_study_of_other_images_has_nothing_to_compare(make_results):
    assert comparison_table(make_results()).empty


def test_figures_are_percentages_once_each_of_detectors_by_the_names_they_have_here():
    table = figures()
    assert table.published.between(0, 100).all()
    assert not table.duplicated(["id_dataset", "against", "objective", "detector", "setting", "method"]).any()
    of_groups = table[table.against.isin(["near mean", "far mean"]) & table.setting.str.startswith("OpenOOD")]
    n_cells = of_groups.groupby("method").size().to_dict()
    assert n_cells.pop("MLS") == 2  # only its row of CIFAR-100 is known
    assert n_cells == dict.fromkeys(n_cells, 4)
    assert len(n_cells) == 14


def test_far_sets_of_the_literature_that_a_study_lacks_are_named(make_results):
    results = make_results(id_datasets=("cifar10", "digits"), ood=CIFAR | {"folder:sets/LSUN": "far", "svhn": "far"})
    assert absent_sets(results, "cifar10") == ["isun", "places365"]
    assert absent_sets(results, "digits") == []
