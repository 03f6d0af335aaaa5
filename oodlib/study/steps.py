"""The four steps of a run: each reads what the step before wrote, computes, and writes artefacts; notebooks show them.

A step that is done already is left alone. A step whose input is missing makes it first, as the run's record, or the
reported one, says it was made: so a notebook opened alone in a fresh clone works, and trains. What needs a network is
imported where it is used: clustering and scoring need none, and importing timm takes longer than either.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from oodlib.clustering.clusters import OWN_SIZE, Clusters, cluster
from oodlib.data.sets import ImageSet, load_images, take
from oodlib.device import default_device, describe_machine
from oodlib.encoders.embedding import embed_images, embed_views, save_embeddings
from oodlib.files import ON_THE_WAY
from oodlib.scoring.choices import choice_table
from oodlib.scoring.distances import DISTANCES
from oodlib.scoring.evaluation import Scored, all_scores, evaluate, n_detectors, with_combination
from oodlib.separation import cluster_quality, embedding_quality
from oodlib.study.artefacts import (
    SHOWN,
    VIEWED,
    aligned,
    false_alarm_table,
    interval_table,
    is_correct,
    load_clusters,
    ood_groups,
    project_tests,
    quantile_table,
    risk_table,
    run_embeddings,
    save_clusters,
    shown_name,
    write_csv,
)
from oodlib.study.checks import check_clusterings, check_evaluation, check_ood_sets, check_same_classes
from oodlib.study.image_scores import save_image_scores
from oodlib.study.reported import reported_record
from oodlib.study.run import Run, run_name
from oodlib.study.snapshots import epoch_table

if TYPE_CHECKING:
    from oodlib.encoders.settings import TrainingConfig

N_VIEWED = 1000  # held-out images that are embedded in two views each


def train_step(
    study: str,
    config: "TrainingConfig",
    data_root: str = "",
    until: float = math.inf,
    say_every: float = math.inf,
    wait: bool = True,
) -> Run:
    """Train the run that a configuration names, or find it trained; write its weights and history; return it.

    `until` and `say_every` are those of `training.train`, which raises OutOfTime.

    A run that is on record keeps what it kept on its way: checkpoints and snapshots do not decide its weights. Where
    another process trains the run, it waits for that one, and goes on from what it has left; without `wait` it raises
    filelock.Timeout.
    """
    from oodlib.encoders import distributed
    from oodlib.encoders.checkpoint import remove_checkpoint
    from oodlib.encoders.training import CHECKPOINT
    from oodlib.files import remove_partial_files

    run = Run(study, run_name(config.id_dataset, config.arch, config.objective, config.seed))
    before = run.record.get("train", {"parameters": {}})["parameters"]
    config = replace(config, **{key: before[key] for key in ON_THE_WAY if key in before})
    if not distributed.anywhere(not run.is_done("train", asdict(config))):
        distributed.say(f"{run.name} is trained already: {run.path}")
    else:
        images = load_images(config.id_dataset, "train", data_root or None)
        with distributed.on_first(_alone_at(run, wait), otherwise=None):
            if distributed.anywhere(not run.is_done("train", asdict(config))):
                _train(run, config, images, until, say_every)
    if distributed.rank() == 0:
        remove_checkpoint(run.path / CHECKPOINT)
        remove_partial_files(run.path, "encoder")
    return run


@contextmanager
def _alone_at(run: Run, wait: bool) -> Iterator[None]:
    """Wait until no other process trains a run, or raise Timeout where one does; keep others waiting."""
    from filelock import FileLock, Timeout

    run.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.path.parents[1] / f"{run.name}.lock")  # not in the run's folder, which holds artefacts alone
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        print(f"{run.name} is being trained by another process, which is waited for", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train(run: Run, config: "TrainingConfig", images: ImageSet, until: float, say_every: float) -> None:
    from oodlib.encoders import distributed
    from oodlib.encoders.encoder import save_encoder
    from oodlib.encoders.training import train

    with distributed.on_first(run.doing("train", asdict(config)), otherwise={}) as about:
        about["environment"] = describe_machine(default_device())
        encoder, history = train(config, images, run.path, until, say_every)
        with distributed.together():
            if distributed.rank() == 0:
                write_csv(pd.DataFrame(history), run.path / "history.csv")
                save_encoder(encoder, run.path / "encoder.safetensors", config.half)


def embed_step(
    run: Run, near_ood: list[str], far_ood: list[str], sanity_ood: list[str], max_images: int = 0, data_root: str = ""
) -> Run:
    """Embed the ID splits and the test split of every OOD set; OOD labels are -1, `max_images` 0 takes all."""
    from oodlib.data.sets import split_calibration
    from oodlib.encoders.encoder import load_encoder
    from oodlib.encoders.training import snapshots_of

    parameters = {"near_ood": near_ood, "far_ood": far_ood, "sanity_ood": sanity_ood, "max_images": max_images}
    ready(run, "train", data_root)
    if run.is_done("embed", parameters):
        return run
    config = run.record["train"]["parameters"]
    id_dataset = config["id_dataset"]
    check_ood_sets(id_dataset, near_ood, far_ood, sanity_ood, max_images)
    # every set is loaded before anything is computed or written: a missing one is said at once
    training, test = (load_images(id_dataset, split, data_root or None) for split in ("train", "test"))
    check_same_classes(training, test)
    groups = {"near": near_ood, "far": far_ood, "sanity": sanity_ood}
    ood_sets = [(g, load_images(name, "test", data_root or None)) for g, names in groups.items() for name in names]
    with run.doing("embed", parameters):
        encoder = load_encoder(run.path / "encoder.safetensors").to(default_device())
        held_in, held_out = split_calibration(training, config["calibration_fraction"])
        splits = {"train": (training, held_in), "calibration": (training, held_out), "test": (test, slice(None))}
        for split, (images, index) in splits.items():
            z, logits = embed_images(encoder, take(images.images, index))
            save_embeddings(run.embeddings_path(id_dataset, split), z, images.labels[index].astype(np.int64), logits)
        some = held_out[:N_VIEWED]
        z = np.concatenate(embed_views(encoder, take(training.images, some), config["seed"]))
        save_embeddings(run.embeddings_path(id_dataset, VIEWED), z, np.tile(training.labels[some].astype(np.int64), 2))
        for _, ood in ood_sets:
            z, logits = embed_images(encoder, take(ood.images, slice(max_images or None)))
            own = ood.labels[: len(z)].astype(np.int64)
            save_embeddings(run.embeddings_path(ood.name, "test"), z, np.full(len(z), -1), logits, own)
        epochs = epoch_table(snapshots_of(run.path), training, test, ood_sets)
        write_csv(epochs.assign(run=run.name), run.path / "epochs.csv")
    return run


def cluster_step(run: Run, clusterings: list[str], n_clusters: list[int], data_root: str = "") -> pd.DataFrame:
    """Cluster the training embeddings every way asked for; write and return how good the clusters are (clusters.csv).

    `n_clusters` are the K of the clusterings that need one: 0 means the number of classes, -1 the K that the training
    embeddings themselves suggest.
    """
    parameters = {"clusterings": clusterings, "n_clusters": n_clusters}
    check_clusterings(**parameters)
    ready(run, "embed", data_root)
    if run.is_done("cluster", parameters):
        return pd.read_csv(run.path / "clusters.csv")
    with run.doing("cluster", parameters):
        data, config = run_embeddings(run), run.record["train"]["parameters"]
        z, y = data.train.z, data.train.y
        found, rows = {}, _quality_rows([*embedding_quality(z, y), aligned(run)], "none", 0)
        for name, k, clusters in _clusterings(z, y, clusterings, n_clusters, config["seed"]):
            if (name, k) not in found:
                found[name, k] = clusters
                rows += _quality_rows(cluster_quality(z, clusters.assignments, y), name, k)
        save_clusters(run, found)
        write_csv(project_tests(data, config["id_dataset"]), run.path / "projection.csv")
        table = pd.DataFrame(rows).assign(run=run.name)
        write_csv(table, run.path / "clusters.csv", digits=5)
    return table


def _clusterings(
    z: np.ndarray, y: np.ndarray, clusterings: list[str], n_clusters: list[int], seed: int
) -> Iterator[tuple[str, int, Clusters]]:
    """Yield name, K and clusters of every clustering, each K once."""
    n_classes = len(np.unique(y))
    sizes = dict.fromkeys({0: n_classes, -1: "auto"}.get(k, k) for k in n_clusters)  # in order
    for name in clusterings:
        for k in [None] if name in OWN_SIZE else sizes:
            clusters = cluster(z, y, name, k, seed)
            yield name, k if isinstance(k, int) else len(clusters.centers), clusters


def _quality_rows(quality: list[dict], clustering: str, k: int) -> list[dict]:
    about = {"run": "", "clustering": clustering, "n_clusters": k}
    return [about | row for row in quality]


def evaluate_step(
    run: Run,
    distances: list[str],
    thresholds: list[str],
    n_neighbors: int,
    known_outliers: list[int],
    alpha: float,
    choice_rules: list[str],
    data_root: str = "",
) -> pd.DataFrame:
    """Score every OOD set with every detector and threshold; write and return metrics.csv.

    The detectors are those of `oodlib.scoring.evaluation`: every distance to the clusters of every clustering of step
    `cluster`, and the references. Empty `distances` and `thresholds` take all there are; "global" must be among the
    latter. `known_outliers` are the numbers of OOD images a class that outlier-exposed heads see, `alpha` the
    false-alarm rate of the thresholds. What figures are drawn from it writes for some detectors (SHOWN):
    the score of every test image (image_scores.npz), quantiles of scores (scores.csv), intervals of AUROC
    (intervals.csv), risk-coverage curves (risk_coverage.csv), promised and realised false-alarm rates
    (false_alarms.csv).
    """
    parameters = {
        "distances": distances,
        "thresholds": thresholds,
        "n_neighbors": n_neighbors,
        "known_outliers": known_outliers,
        "alpha": alpha,
        "choice_rules": choice_rules,
    }
    check_evaluation(**parameters)
    ready(run, "cluster", data_root)
    if run.is_done("evaluate", parameters):
        return pd.read_csv(run.path / "metrics.csv")
    with run.doing("evaluate", parameters) as about:
        data = run_embeddings(run)
        assignments, mixtures = load_clusters(run, len(data.train.z))
        correct, about["id_accuracy"] = is_correct(data)
        distances = distances or list(DISTANCES)
        total = n_detectors(data, assignments, distances, known_outliers)
        rows, shown = [], []
        detectors = all_scores(data, assignments, distances, n_neighbors, known_outliers, mixtures)
        for scored in with_combination(tqdm(detectors, total=total, desc="detectors", mininterval=1)):
            rows += evaluate(scored, list(data.ood), correct, alpha, thresholds)
            if shown_name(scored) in SHOWN:
                shown.append(scored)
        table = _metrics(run, rows)
        write_csv(table, run.path / "metrics.csv", digits=5)
        _write_shown(run, shown, correct)
        seed = run.record["train"]["parameters"]["seed"]
        choices = choice_table(data, choice_rules, list(assignments), distances, n_neighbors, seed)
        write_csv(choices.assign(run=run.name), run.path / "choices.csv")
    return table


def _metrics(run: Run, rows: list[dict]) -> pd.DataFrame:
    config = run.record["train"]["parameters"]
    about = {"run": run.name} | {key: config[key] for key in ("id_dataset", "arch", "objective", "seed")}
    groups = ood_groups(run)
    return pd.DataFrame(
        [about | {"ood_dataset": r["ood_dataset"], "group": groups[r["ood_dataset"]]} | r for r in rows]
    )


def _write_shown(run: Run, shown: list[Scored], correct: np.ndarray) -> None:
    ood_sets = list(ood_groups(run))
    sets = {"test": run.record["train"]["parameters"]["id_dataset"]} | {name: name for name in ood_sets}
    tables = {
        "scores": [quantile_table(scored, sets) for scored in shown],
        "intervals": [interval_table(scored, ood_sets) for scored in shown],
        "risk_coverage": [risk_table(scored, ood_sets, correct) for scored in shown],
        "false_alarms": [false_alarm_table(scored) for scored in shown],
    }
    for name, parts in tables.items():
        write_csv(pd.concat(parts), run.path / f"{name}.csv")
    scores = {shown_name(scored): {sets[key]: scored.scores[key] for key in sets} for scored in shown}
    save_image_scores(run, scores)


def ready(run: Run, step: str, data_root: str = "") -> Run:
    """Return a run whose step is done; where its artefacts are not there, it is done as recorded, or as reported.

    Raises FileNotFoundError for a step that is on no record.
    """
    record = run.record if step in run.record else reported_record(run)
    if step not in record:
        raise FileNotFoundError(
            f"step {step!r} of run {run.name!r} in study {run.study!r} is not done: nothing in {run.path}"
        )
    parameters = record[step]["parameters"]
    if step != "train":
        ready(run, {"embed": "train", "cluster": "embed"}[step], data_root)
    if run.is_done(step, parameters):
        return run
    print(f"{run.name}: step {step!r} is done first, its artefacts are not there")
    if step == "train":
        from oodlib.encoders.settings import TrainingConfig

        train_step(run.study, TrainingConfig(**parameters), data_root)
    elif step == "embed":
        embed_step(run, **parameters, data_root=data_root)
    else:
        cluster_step(run, **parameters, data_root=data_root)
    return run
