"""Tables beside AUROC: accuracy and cost, clusters, thresholds, and the model's own errors; mean ± sd over seeds."""

import pandas as pd

from oodlib.report.means import beside, group_means, mean_sd, over_seeds
from oodlib.report.results import SETTING, Results

ERROR_MEASURES = ["auroc", "error_auroc", "aurc", "augrc", "oscr"]


def cost_table(results: Results) -> pd.DataFrame:
    """Return, for each setting, accuracy and training cost as mean ± sd over seeds, with n."""
    runs = results.runs.groupby(SETTING, sort=False)
    table = runs.epochs.agg(lambda epochs: "–".join(str(e) for e in sorted(set(epochs)))).reset_index()
    table.insert(len(SETTING), "n", runs.size().to_numpy())
    columns = {
        "ID accuracy %": ("id_accuracy", 100),
        "nearest class mean %": ("nearest_class_mean", 100),
        "training seconds": ("training_seconds", 1),
    }
    for name, (column, times) in columns.items():
        spread = zip(runs[column].mean() * times, runs[column].std() * times, strict=True)
        table[name] = [mean_sd(mean, sd) for mean, sd in spread]
    return table.assign(**{"network inputs": [f"{n:,.0f}" for n in runs.network_inputs.mean()]})


def cluster_table(
    results: Results, measures: tuple[str, ...] = ("global_separation", "cluster_purity")
) -> pd.DataFrame:
    """Return, for each setting, clustering and K, the measures' means over clusters: mean ± sd over seeds, with n."""
    keys = [*SETTING, "clustering", "n_clusters"]
    chosen = results.clusters[results.clusters.measure.isin(measures)]
    per_run = chosen.groupby([*keys, "measure", "seed"], sort=False).value.mean().dropna().reset_index()
    table = over_seeds(per_run, [*keys, "measure"], "value").reset_index()
    table["cell"] = [
        f"{m:.3f}" if pd.isna(s) else f"{m:.3f} ± {s:.3f}" for m, s in zip(table["mean"], table.sd, strict=True)
    ]
    spread = table.pivot_table(index=[*keys, "n"], columns="measure", values="cell", aggfunc="first", sort=False)
    spread = spread.fillna("").reset_index().rename_axis(columns=None)
    spread["place"] = spread.groupby([*SETTING, "clustering"], sort=False).ngroup()
    return spread.sort_values(["place", "n_clusters"], kind="stable", ignore_index=True).drop(columns="place")


def threshold_table(results: Results, detectors: list[str]) -> pd.DataFrame:
    """Return false alarms and detections in percent at the shipped thresholds, mean ± sd over seeds, with n.

    One row a setting, detector and threshold; detections are averaged over the near and over the far sets of a run.
    Raises ValueError for an unknown detector.
    """
    known = list(dict.fromkeys(results.decisions.base))
    if unknown := [name for name in detectors if name not in known]:
        raise ValueError(f"unknown detector {unknown[0]!r}; known: {', '.join(known)}")
    decisions = results.decisions[results.decisions.base.isin(detectors)].rename(columns={"base": "detector"})
    keys = [*SETTING, "detector", "threshold"]
    parts = {"false alarms %": over_seeds(_percent(decisions, [*keys, "seed"], "id_rejected"), keys, "id_rejected")}
    for group in ("near", "far"):
        chosen = decisions[decisions.group == group]
        if len(chosen):
            rates = _percent(chosen, [*keys, "seed"], "ood_rejected")
            parts[f"{group} OOD detected %"] = over_seeds(rates, keys, "ood_rejected")
    return beside(parts)


def _percent(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Return the mean of a share over the rows of each group, in percent."""
    return table.groupby(keys, sort=False)[value].mean().mul(100).reset_index()


def error_table(results: Results) -> pd.DataFrame:
    """Return how well scores reject OOD images and the model's own errors together, mean ± sd over seeds, with n.

    One row a setting, detector and group of OOD sets, near or far: AUROC, AUROC of errors, AURC and AUGRC (lower is
    better) and OSCR, all times 100, each averaged over the sets of a run first. A measure that some run lacks, as
    earlier ones AUGRC, is left out.
    """
    keys = [*SETTING, "detector", "group"]
    measured = results.metrics.reindex(columns=["run", *ERROR_MEASURES]).groupby("run").count().all()
    measures = [measure for measure in ERROR_MEASURES if measured[measure]]
    means = group_means(results, measures)
    means[measures] *= 100
    return beside({measure: over_seeds(means, keys, measure) for measure in measures})
