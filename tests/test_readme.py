"""The README: its commands are the ones that are run, and its numbers are those of the committed artefacts."""

import base64
import json
import re
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import make_project
from PIL import Image

from oodlib.app import model
from oodlib.clustering import CLUSTERINGS
from oodlib.data import load_images
from oodlib.encoders import ARCHITECTURES, OBJECTIVES, TrainingConfig
from oodlib.encoders.training import train
from oodlib.plots.style import OBJECTIVE_NAMES
from oodlib.report.means import mean_sd
from oodlib.scoring import DISTANCES, LOGIT_SCORES, THRESHOLDS, ClusterDetector, load_detector
from oodlib.scoring.evaluation import Embedded, RunEmbeddings, all_scores, cluster_scores, evaluate, n_detectors
from oodlib.study.studies import read_study

ROOT = Path(__file__).parents[1]
TEXTS = {
    str(path): (ROOT / path / "README.md").read_text()
    for path in map(Path, (".", "notebooks", "oodlib", "outputs", "tests/benchmarks"))
}
README, NUMBERS = TEXTS["."], TEXTS["outputs"]
REPORTED = ROOT / "outputs" / "reported"
STRONGEST = "cifar"  # the study that leads the README's results
STUDIES = ("digits", "cifar-small", "cifar", "cifar-pretrained")  # of which fisher is known
SMOOTHED = ("cifar-small", "cifar-unsmoothed")  # studies with and without label smoothing
OBJECTIVES_BY_NAME = {name: objective for objective, name in OBJECTIVE_NAMES.items()}
DETECTORS = ("labels/mahalanobis", "labels/mahalanobis-shrunk++", "labels/cosine", "msp")  # of the table of the digits


def block(name: str, where: str = ".") -> str:
    """Return the code block that stands between <!-- name --> and <!-- end --> in the README of a folder."""
    found = re.search(rf"<!-- {name} -->\s*```\w*\n(.*?)```\s*<!-- end -->", TEXTS[where], re.S)
    assert found, f"the README of {where} has no block {name!r}"
    return found[1].strip()


def test_ci_runs_the_test_command_of_the_readme():
    extract = re.search(r"^command=\$\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.M)[1]
    printed = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == block("test")


def test_requirements_end_with_the_package_and_match_its_metadata():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    *listed, package = filter(None, lines)
    assert package == "-e ."
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    extra = ("pytest", "ruff", "distributed", "efficientnet")
    assert [line for line in listed if not line.startswith(extra)] == declared


def rows_below(header: str, text: str = NUMBERS) -> list[list[str]]:
    """Return the cells of a README's table with this header, a list a row."""
    found = re.search(rf"^{re.escape(header)}\n\|[-| ]+\|\n((?:\|.*\|\n)+)", text, re.M)
    assert found, f"there is no table {header!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def reported(study: str, name: str) -> pd.DataFrame:
    return pd.read_csv(REPORTED / study / "report" / f"{name}.csv")


def near_means(study: str, id_dataset: str, objective: str) -> pd.DataFrame:
    """Return what the main table of a study says of the near sets, by detector."""
    table = reported(study, "main_auroc").query("ood_dataset == 'near mean'")
    return table[(table.id_dataset == id_dataset) & (table.objective == objective)].set_index("detector")


def test_result_table_of_the_digits_is_the_committed_one():
    rows = rows_below("| objective | detector | digits 7–9 (near) | letters (far) | photographs (far) |")
    table = reported("digits", "main_auroc")
    table = table[table.detector.isin(DETECTORS)].set_index(["ood_dataset", "objective", "detector"])
    assert {name for name, *_ in rows} == {"cross-entropy", "SimCLR", "SupCon"}
    for name, detector, *found in rows:
        for ood, cell in zip(("digits789", "letters", "photos"), found, strict=True):
            own = table.loc[(ood, OBJECTIVES_BY_NAME[name], detector)]
            bold = "**" if round(own["mean"], 1) == table["mean"][ood].round(1).max() else ""
            assert cell == f"{bold}{mean_sd(own['mean'], own.sd)}{bold}"


def test_result_table_of_the_strongest_encoders_is_the_committed_one():
    detectors = ("knn", "labels/mahalanobis", "labels/mahalanobis-shrunk++", "msp")
    rows = rows_below(f"| trained on | objective | n | accuracy % | {' | '.join(detectors)} |")
    records = json.loads((REPORTED / STRONGEST / "runs.json").read_text())
    runs = pd.Series({record["run"]: 100 * record["evaluate"]["id_accuracy"]["classifier"] for record in records})
    assert len(rows) == len(reported(STRONGEST, "main_auroc")[["id_dataset", "objective"]].drop_duplicates())
    for dataset, name, *found in rows:
        id_dataset, objective = dataset.lower().replace("-", ""), OBJECTIVES_BY_NAME[name]
        own = near_means(STRONGEST, id_dataset, objective)
        accuracy = runs[runs.index.str.match(f"{id_dataset}-.*-{objective}-s")]
        near = [mean_sd(own["mean"][d], own.sd[d]) if d in own.index else "–" for d in detectors]
        assert found == [str(own.n.max()), f"{accuracy.mean():.1f}", *near]
        assert len(accuracy) == own.n.max()


def test_verdicts_and_their_numbers_are_the_committed_ones():
    rows = rows_below("| claim | strong encoders | strongest encoders | the number that decides |", README)
    studies = [reported(study, "verdicts") for study in ("cifar-small", STRONGEST)]
    for claim, (_, *verdicts, numbers) in zip(("C1", "C2", "C3", "C4", "C5"), rows, strict=True):
        tables = [study[study.claim == claim] for study in studies]
        for said, table in zip(verdicts, tables, strict=True):
            assert set(re.findall("supported|contradicted|undecided", said)) == set(table.verdict) - {"not tested"}
        quoted = re.findall(r"(-?[0-9.]+) \[(-?[0-9.]+), (-?[0-9.]+)\]", numbers)
        measured = pd.concat(tables)[["value", "low", "high"]].map("{:.2f}".format)
        assert quoted
        assert set(quoted) <= set(measured.itertuples(index=False, name=None))


def test_the_picture_of_the_page_is_that_of_the_executed_notebook():
    notebook = json.loads((REPORTED / "digits" / "notebooks" / "06_your_images.ipynb").read_text())
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pictures = [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]
    assert (REPORTED / "digits" / "least_normal.png").read_bytes() in pictures


def said(pattern: str, text: str = NUMBERS) -> list[str]:
    """Return the numbers, and the names, of a sentence of a README."""
    return [*re.search(pattern, text, re.S).groups()]


def rounded(*values: float) -> list[str]:
    return [f"{value:.1f}" for value in values]


def test_numbers_in_sentences_are_the_committed_ones():
    weak, strongest = (near_means(study, "cifar100", "ce")["mean"] for study in ("cifar-resnet20", STRONGEST))
    names = ["labels/cosine", "labels/relative-mahalanobis"]
    pattern = (
        r"cosine has ([0-9.]+) and relative\s+Mahalanobis ([0-9.]+) with weak encoders; ([0-9.]+) and ([0-9.]+) with"
    )
    assert said(pattern) == rounded(*weak[names], *strongest[names])
    means = near_means("cifar-pretrained", "cifar10", "ce")["mean"]
    accuracy = reported("cifar-pretrained", "runs")["ID accuracy %"][0]
    pattern = r"cross-entropy, ([0-9.]+) %, one run\) has ([0-9.]+) with `knn`, and ([0-9.]+) with"
    assert said(pattern) == rounded(accuracy, means["knn"], means["labels/mahalanobis"])
    logitnorm, supcon = (near_means(STRONGEST, "cifar10", name)["mean"] for name in ("logitnorm", "supcon"))
    pattern = r"has the best near AUROC, ([0-9.]+)\..*?it has ([0-9.]+) with SupCon"
    assert said(pattern, README) == rounded(logitnorm["msp"], supcon["labels/mahalanobis-shrunk++"])
    table = reported(STRONGEST, "main_auroc").query("ood_dataset == 'near mean' and id_dataset == 'cifar10'")
    assert table["mean"].max() == logitnorm["msp"]


def test_what_label_smoothing_costs_is_as_committed():
    detectors = ("react", "vim", "nci", "fdbd", "energy", "msp", "knn", "ash", "labels/mahalanobis")
    rows = rows_below(f"| | {' | '.join(f'`{name}`' for name in detectors)} |")
    near = [near_means(study, "cifar10", "ce")["mean"] for study in SMOOTHED]
    assert [found for _, *found in rows] == [rounded(*means[[*detectors]]) for means in near]
    gains = near[1] - near[0]
    pattern = r"`react` gains ([0-9.]+) points near, `vim`\s+([0-9.]+)\."
    assert said(pattern, README) == rounded(gains["react"], gains["vim"])
    tables = [
        reported(study, "main_auroc").query("objective == 'ce' and ood_dataset == 'far mean'") for study in SMOOTHED
    ]
    far = [table[table.id_dataset == "cifar100"].set_index("detector")["mean"] for table in tables]
    pattern = r"distances \(`vim` ([0-9.]+) to ([0-9.]+), `labels/cosine` ([0-9.]+) to ([0-9.]+)\)"
    assert said(pattern) == rounded(*(means[name] for name in ("vim", "labels/cosine") for means in far))


def test_the_regret_of_the_recommended_rules_is_the_committed_one():
    table, each = reported(STRONGEST, "regret_pooled").set_index("rule"), reported(STRONGEST, "regret")
    everywhere = table[table.n == table.n.max()].worst
    pattern = r"always\s+`(.+?)`\s+loses least where it is worst: ([0-9.]+) AUROC"
    assert said(pattern, README) == [everywhere.idxmin().removeprefix("always "), *rounded(everywhere.min())]
    pattern = r"loses ([0-9.]+) AUROC points near and ([0-9.]+) far .*?suit it least, it loses ([0-9.]+)\."
    assert said(pattern, README) == rounded(*table.loc["always fisher", ["near", "far", "worst"]])
    pattern = r"number of clusters it loses ([0-9.]+) there,\s+and always `labels/cosine`\s+([0-9.]+):"
    assert said(pattern) == rounded(*table.worst_any_k[["always fisher", "always labels/cosine"]])
    fisher = pd.concat([reported(study, "regret") for study in STUDIES]).query("rule == 'always fisher'")
    assert said(r"On a single run and OOD set `fisher`\s+has lost ([0-9.]+)\.") == rounded(fisher.regret.max())
    later = each[each.rule == "always fisher"].groupby("group").regret.mean()
    assert said(r"came later, it loses ([0-9.]+) near and ([0-9.]+) far", README) == rounded(
        later["near"], later["far"]
    )
    runs = reported(STRONGEST, "runs")
    each = each[each.run.isin(runs.run[runs["ID accuracy %"] >= 90])]
    worst = each.groupby(["rule", "objective", "group"]).regret.mean().groupby("rule").max()
    rule = "energy, or knn without a classifier"
    pretrained = reported("cifar-pretrained", "regret").groupby(["rule", "group"]).regret.mean()
    pattern = r"loses ([0-9.]+) at most, and\s.*?\s([0-9.]+), but ([0-9.]+) from ImageNet's"
    assert said(pattern) == rounded(worst["always fisher"], worst[rule], pretrained[rule].max())


def test_speed_and_memory_are_the_measured_ones():
    table = pd.read_csv(ROOT / "outputs" / "benchmarks" / "factors.csv")
    ratios = table[table.ratio.notna()].pivot(index=["benchmark", "data", "other"], columns="kind", values="ratio")
    lines = [
        [*about, *("–" if pd.isna(ratio) else f"{ratio:.2f}" for ratio in (row.bfloat16, row.AVX2))]
        for about, row in ratios.iterrows()
    ]
    memory = table[table.megabytes.notna()]
    lines += [[row.benchmark, row.data, f"{row.megabytes:,.0f}"] for row in memory.itertuples()]
    for row in pd.read_csv(ROOT / "outputs" / "benchmarks" / "training.csv").itertuples():
        rates = [f"{rate:,.0f}" for rate in (row.ours_images_per_second, row.other_images_per_second)]
        what = f"{row.network}, batch {row.batch}, {row.kind}"
        lines.append([what, row.data, *rates, row.other, f"{row.ratio:.2f}"])
    assert [line for line in lines if f"\n| {' | '.join(line)} |\n" not in TEXTS["tests/benchmarks"]] == []


@pytest.mark.parametrize(
    ("where", "target"), [(w, target) for w, text in TEXTS.items() for target in re.findall(r"\]\(([^)#:]+)[#)]", text)]
)
def test_links_lead_somewhere(where, target):
    assert (ROOT / where / target).exists()


PYTHON = [code for text in TEXTS.values() for code in re.findall(r"```python\n(.*?)```", text, re.S)]


@pytest.fixture
def _registries():
    """What an example adds to the dictionaries of names is gone after the test."""
    with ExitStack() as kept:
        for registry in (ARCHITECTURES, OBJECTIVES, CLUSTERINGS, DISTANCES, LOGIT_SCORES, THRESHOLDS):
            kept.enter_context(mock.patch.dict(registry))
        yield


@pytest.mark.usefixtures("_registries")
def test_python_examples_run_and_what_they_add_works_like_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OODLIB_DATA", raising=False)
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), {})
    config = TrainingConfig(arch="tiny", objective="brier", epochs=1, input_size=8)
    encoder, history = train(config, load_images("digits", "train"))
    assert 0 < history[0]["loss"] < 6 / 7 / 7 * 1.5  # uniform guesses of 7 classes have 6/49
    z, y = np.random.default_rng(0).normal(size=(60, 4)) + 5 * np.eye(3, 4)[np.arange(60) % 3], np.arange(60) % 3
    detector = ClusterDetector(clustering="birch", n_clusters=3, distance="manhattan").fit(z)
    expected = -np.abs(z[:, None] - np.stack([z[y == c].mean(axis=0) for c in range(3)])).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(detector.score_samples(z), expected)
    detector.save(tmp_path / "birch.safetensors")
    assert np.array_equal(load_detector(tmp_path / "birch.safetensors").score_samples(z), detector.score_samples(z))
    held_out = z + 0.1
    scores = detector.score_samples(held_out)
    detector = ClusterDetector("birch", 3, "manhattan", "three-sigma").fit(z, z_calibration=held_out)
    assert detector.offset_ == pytest.approx(scores.mean() - 3 * scores.std(), rel=1e-6)
    data = RunEmbeddings(*(Embedded(x, y) for x in (z, held_out, z)), {"far": Embedded(z + 50, y)})
    logits = np.array([[3.0, 1.0, 2.0]] * 30 + [[5.0, 0.0, 1.0]] * 30)
    sets = [Embedded(own.z, own.y, logits) for own in (data.train, data.calibration, data.test, data.ood["far"])]
    judged = RunEmbeddings(*sets[:3], {"far": sets[3]}, np.eye(3, 4), np.zeros(3))
    found = {scored.distance: scored.scores for scored in all_scores(judged, {}, [], 5, [])}
    assert found["margin"]["test"].tolist() == [1.0] * 30 + [4.0] * 30
    assert len(found) == n_detectors(judged, {}, [], [])
    rows = list(evaluate(next(cluster_scores(data, {("labels", 3): y}, ["manhattan"])), ["far"], y >= 0, 0.05))
    assert {row["threshold"]: row["ood_rejected"] for row in rows}["three-sigma"] == 1.0


def run(commands: str, cwd: Path) -> str:
    """Run commands of a README with this environment for .venv; return what they print."""
    commands = commands.replace(".venv/bin/python", sys.executable)
    commands = commands.replace(".venv/bin/papermill", f"{sys.executable} -m papermill")
    return subprocess.run(["bash", "-ec", commands], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project without any outputs, its notebooks the cells of their steps."""
    made = make_project(tmp_path_factory.mktemp("readme") / "project")
    made.bare_notebooks()
    return made.root


def test_papermill_commands_run(project):
    commands, second = block("papermill", "notebooks"), "02_embed.ipynb out.ipynb"
    run(commands.replace(second, f"{second} -p max_images 150"), project)
    folder = project / "outputs" / "mine" / "runs" / "digits-airbench_16_32_64-supcon-s0"
    assert len(pd.read_csv(folder / "history.csv")) == 5
    assert {"auroc", "fpr95"} <= set(pd.read_csv(folder / "metrics.csv"))
    executed = json.loads((project / "out.ipynb").read_text())
    assert not any(o.get("output_type") == "error" for c in executed["cells"] for o in c.get("outputs", []))


def test_photos_become_a_page_and_a_model(project):
    for i, name in enumerate(("dark", "bright")):
        (project / "path" / "to" / "photos" / name).mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(120 * i, 120 * i + 120, size=(12, 40, 30, 3), dtype=np.uint8)
        for j, image in enumerate(pixels):
            Image.fromarray(image).save(project / "path" / "to" / "photos" / name / f"{j}.png")
    Image.fromarray(pixels[0]).save(project / "photo.jpg")
    first, second = block("yours").splitlines()
    run(f"{first} --backbone airbench_4_8_8 --weights ''", project)
    assert list((project / "outputs" / "your_images").glob("*.html"))
    assert "photo.jpg" in run(second, project)
    with_onnx = find_spec("onnxscript") is not None
    lines = f"{block('model', 'oodlib')}\n{block('export', 'oodlib')}".splitlines()
    code = "\n".join(line for line in lines if with_onnx or "onnx" not in line)
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert re.match(r"\['(dark|bright)'\] \[-[0-9.]+\] \[[01]\.[0-9]*\] \[ *(True|False)\]", done.stdout)
    assert (project / "model.pt2").is_file()
    assert (project / "model.onnx").is_file() == with_onnx
    if with_onnx:
        import onnx

        assert tuple(output.name for output in onnx.load(project / "model.onnx").graph.output) == model.OUTPUTS


def test_study_in_the_readme_is_one_that_can_be_read(project, monkeypatch):
    text = re.search(r"```yaml\n(.*?)```", TEXTS["notebooks"], re.S)[1]
    (project / "notebooks" / "studies" / "readme.yaml").write_text(text)
    monkeypatch.chdir(project)
    runs, _ = read_study("readme")
    assert len(runs) == 6
    assert {plan.parameters["train"]["epochs"] for plan in runs if "supcon" in plan.run.name} == {60}
