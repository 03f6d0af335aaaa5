"""Provenance of hand-made results, and of the small study."""

import json
from dataclasses import replace

import pandas as pd

from oodlib.report import provenance
from oodlib.report import results as report


def test_sets_of_a_study_have_a_source_terms_and_what_must_be_known(make_results):
    ood = {"tinyimagenet": "near", "dtd10": "far", "omniglot": "far", "noise:32": "sanity", "folder:mine": "far"}
    results = make_results(id_datasets=("cifar10", "cifar100"), ood=ood)
    whole = results.runs.assign(clustering="none", measure="rankme", size=45000, value=1.0)
    metrics = results.metrics.assign(n_id=10000, n_ood=1200)
    table = provenance.data_table(replace(results, metrics=metrics, clusters=whole)).set_index("set")
    assert list(table) == ["part", "images", "source", "terms", "note"]
    assert table.loc["CIFAR-10", ["part", "images"]].tolist() == ["ID", "45000 training, 10000 test"]
    assert "98 training images" in table.loc["CIFAR-10", "note"]
    assert "not the ODIN archive" in table.loc["Tiny ImageNet", "note"]
    assert table.loc["DTD (10 classes)", ["part", "images"]].tolist() == ["far OOD of CIFAR-10, CIFAR-100", "1200 test"]
    assert table.loc["Omniglot", ["terms", "note"]].tolist() == ["MIT", "downsampled to 28×28"]
    assert table.loc["noise 32", "source"] == "computed"
    assert table.loc["folder:mine", "source"] == ""


def test_what_the_pretraining_has_seen_is_said_where_there_was_one(make_results):
    results = make_results(id_datasets=("cifar10",), ood={"tinyimagenet": "near", "mnist": "far"})
    assert provenance.pretraining_note(results) == ""
    note = provenance.pretraining_note(replace(results, runs=results.runs.assign(pretrained=True)))
    assert "CIFAR-10: most of its classes" in note
    assert "Tiny ImageNet: all of its 200 classes" in note
    assert "MNIST" not in note


def test_runs_say_how_they_were_made(studied, monkeypatch):
    monkeypatch.chdir(studied.root)
    table = provenance.run_table("small", report.collect("small"))
    row = table.set_index("run").loc["digits-airbench_16_32_64-ce-s1"]
    record = json.loads((studied.run_folder("small", "digits-airbench_16_32_64-ce-s1") / "config.json").read_text())
    assert (row.seed, row.epochs) == (1, 1)
    history = pd.read_csv(studied.run_folder("small", "digits-airbench_16_32_64-ce-s1") / "history.csv")
    assert row["train s"] == round(history.seconds.sum())
    for step in ("embed", "cluster", "evaluate"):
        assert row[f"{step} s"] == round(record[step]["seconds"])
    assert row.threads == record["train"]["environment"]["threads"]
    assert f"torch {record['train']['environment']['torch']}" in row.versions
    assert row["ID accuracy %"] == f"{100 * record['evaluate']['id_accuracy']['classifier']:.1f}"
