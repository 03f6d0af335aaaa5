"""Verdicts: the results of a study in; for each of the paper's claims C1 to C5 a word and a sentence with numbers out.

The claims are those of arXiv 2203.08549. Detectors are named before the results are seen: each test compares the same
one, given as `detector`. Comparisons are paired, run by run of the same ID set, architecture and seed, with a 95 % t
interval of the mean difference; few pairs give wide intervals, and what an interval cannot tell is undecided.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.report import Results, of_classes

PAIR = ["id_dataset", "arch", "seed"]
MARGIN = 2.0  # AUROC points within which a cheaper objective counts as competitive
WELL_SEPARATED = 0.5  # global separation: members are at most half as far from each other as from the nearest cluster
BLOCK = ["id_dataset", "arch", "seed", "ood_dataset"]


@dataclass(frozen=True)
class Verdict:
    """What a study says of one claim: "supported", "contradicted" or "undecided", and why."""

    claim: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """A paired comparison: the mean difference, its 95 % t interval and the number of pairs."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        interval = f", 95 % interval {self.low:+.2f} to {self.high:+.2f}" if self.n > 1 else ""
        return f"{self.mean:+.2f} (n = {self.n}{interval})"


def paired_difference(table: pd.DataFrame, value: str, first: str, second: str) -> Difference | None:
    """Return `first` minus `second` of a per-run value, paired by ID set, architecture, seed; None without a pair."""
    by_objective = table.pivot_table(index=PAIR, columns="objective", values=value)
    if not {first, second} <= set(by_objective):
        return None
    difference = (by_objective[first] - by_objective[second]).dropna()
    n, mean = len(difference), difference.mean()
    if n < 2:
        return Difference(mean, -np.inf, np.inf, n) if n else None
    half = stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / np.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def _needs(claim: str, what: str) -> Verdict:
    return Verdict(claim, "undecided", f"this study has no {what}")


def _sign(low: float, high: float) -> str:
    """Return the word for "greater": supported when the whole interval is above 0, contradicted when all below."""
    return "supported" if low > 0 else "contradicted" if high < 0 else "undecided"


def separated_clusters(results: Results, detector: str) -> Verdict:
    """C1: supervised contrastive training gives well separated clusters, its self-supervised counterpart does not."""
    claim = "C1: SupCon gives well separated clusters, SimCLR does not"
    separation = of_classes(results.clusters, "labels", "global_separation")
    kmeans = of_classes(results.clusters, "kmeans", "cluster_purity")
    per_run = separation.groupby(["objective", *PAIR]).value.mean().reset_index()
    difference = paired_difference(per_run, "value", "supcon", "simclr")
    if difference is None:
        return _needs(claim, "pair of SupCon and SimCLR runs")
    means, purity = (t.groupby(["id_dataset", "objective"]).value.mean().unstack() for t in (per_run, kmeans))
    verdict = _sign(difference.low, difference.high)
    if verdict == "supported" and not ((means.supcon >= WELL_SEPARATED) & (means.simclr < WELL_SEPARATED)).all():
        verdict = "undecided"
    return Verdict(
        claim,
        verdict,
        f"global separation of the classes (well separated: at least {WELL_SEPARATED}) / purity of k-means clusters: "
        f"{_separations(means, purity)}; separation of SupCon minus SimCLR {difference}",
    )


def _separations(means: pd.DataFrame, purity: pd.DataFrame) -> str:
    """Return "objective separation / purity" of all objectives, by ID set where there are several."""
    purity = purity.reindex(index=means.index, columns=means.columns)
    texts = []
    for dataset, row in means.iterrows():
        listed = ", ".join(f"{name} {row[name]:.2f} / {purity[name][dataset]:.2f}" for name in row.dropna().index)
        texts.append(f"{dataset}: {listed}" if len(means) > 1 else listed)
    return "; ".join(texts)


def _against_cross_entropy(results: Results, detector: str, dataset: str, group: str) -> dict[str, Difference]:
    """Return each other objective minus cross-entropy in mean AUROC points over a group of OOD sets."""
    metrics = results.metrics
    chosen = metrics[(metrics.detector == detector) & (metrics.group == group)]
    if dataset:
        chosen = chosen[chosen.id_dataset == dataset]
    per_run = chosen.groupby(["objective", *PAIR]).auroc.mean().mul(100).reset_index()
    others = [name for name in dict.fromkeys(chosen.objective) if name != "ce"]
    differences = {name: paired_difference(per_run, "auroc", name, "ce") for name in others}
    return {name: difference for name, difference in differences.items() if difference}


def _listed(differences: dict[str, Difference]) -> str:
    return ", ".join(f"{name} minus CE {difference}" for name, difference in differences.items())


def contrastive_on_cifar10(results: Results, detector: str) -> Verdict:
    """C2: on CIFAR-10, contrastive training reaches outstanding detection."""
    claim = "C2: on CIFAR-10, contrastive training reaches outstanding detection"
    near = _against_cross_entropy(results, detector, "cifar10", "near")
    if not near:
        return _needs(claim, "CIFAR-10 runs of both CE and a contrastive objective")
    best = max(near, key=lambda name: near[name].mean)
    far = _against_cross_entropy(results, detector, "cifar10", "far")
    reason = f"AUROC points with {detector}: near {_listed(near)}; far {_listed(far) or 'not measured'}"
    return Verdict(claim, _sign(near[best].low, near[best].high), reason)


def cosine_on_cifar100(results: Results, detector: str) -> Verdict:
    """C3: on CIFAR-100, cross-entropy with cosine similarity beats every contrastive variant; near and far apart."""
    claim = "C3: on CIFAR-100, cross-entropy with cosine beats every contrastive variant"
    near = _against_cross_entropy(results, "labels/cosine", "cifar100", "near")
    if not near:
        return _needs(claim, "CIFAR-100 runs of both CE and a contrastive objective")
    far = _against_cross_entropy(results, "labels/cosine", "cifar100", "far")
    low, high = max(d.low for d in near.values()), max(d.high for d in near.values())
    reason = f"AUROC points with labels/cosine: near {_listed(near)}; far {_listed(far) or 'not measured'}"
    return Verdict(claim, _sign(-high, -low), reason)


def rank_matrix(results: Results) -> pd.DataFrame:
    """Return AUROC, one row a block (ID set, architecture, seed, OOD set), one column an objective and detector.

    Sanity sets, and combinations that some block lacks, are left out.
    """
    metrics = results.metrics[results.metrics.group != "sanity"]
    combination = metrics.objective + " " + metrics.detector
    return (
        metrics.assign(combination=combination)
        .pivot_table(index=BLOCK, columns="combination", values="auroc")
        .dropna(axis=1)
    )


def no_single_winner(results: Results, detector: str) -> Verdict:
    """C4: no combination wins everywhere. Friedman test of the ranks, Nemenyi test against the best mean rank."""
    import scikit_posthocs

    claim = "C4: no single combination wins everywhere"
    blocks = rank_matrix(results)
    if len(blocks) < 3 or blocks.shape[1] < 3:
        return _needs(claim, "three blocks and three combinations to rank")
    ranks = blocks.rank(axis=1, ascending=False).mean()
    best = ranks.idxmin()
    wins = int((blocks[best] >= blocks.max(axis=1)).sum())
    p = stats.friedmanchisquare(*blocks.to_numpy().T).pvalue
    apart = int(
        (scikit_posthocs.posthoc_nemenyi_friedman(blocks.to_numpy())[blocks.columns.get_loc(best)] < 0.05).sum()
    )
    verdict = "contradicted" if wins == len(blocks) else "supported" if p < 0.05 else "undecided"
    return Verdict(
        claim,
        verdict,
        f"{best} has the best mean rank, {ranks[best]:.1f} of {len(ranks)}, and is best in {wins} of {len(blocks)} "
        f"blocks (ID set, architecture, OOD set, seed; seeds of one pair are not independent); Friedman p = {p:.1g}; "
        f"the Nemenyi test tells it from {apart} of the {len(ranks) - 1} others",
    )


def cheap_cross_entropy(results: Results, detector: str) -> Verdict:
    """C5: cross-entropy is competitive (within MARGIN AUROC points) at a much lower cost."""
    claim = "C5: cross-entropy is competitive at a much lower cost"
    near = _against_cross_entropy(results, detector, "", "near")
    if not near:
        return _needs(claim, "pair of CE and contrastive runs")
    best = max(near, key=lambda name: near[name].mean)
    cost = results.runs.groupby("objective")[["training_seconds", "network_inputs"]].mean()
    times = cost.loc[best] / cost.loc["ce"]
    low, high = MARGIN - near[best].high, MARGIN - near[best].low
    verdict = _sign(low, high)
    if verdict == "supported" and times.network_inputs <= 1.5:
        verdict = "undecided"
    return Verdict(
        claim,
        verdict,
        f"near OOD with {detector}, AUROC points: {_listed(near)}; competitive is within {MARGIN:.0f} points; {best} "
        f"took {times.training_seconds:.1f} times the training seconds and {times.network_inputs:.1f} times the "
        "network inputs of CE",
    )


def verdicts(results: Results, detector: str) -> pd.DataFrame:
    """Return the verdicts on C1 to C5, one row each: claim, verdict, reason. `detector` was chosen beforehand."""
    if detector not in set(results.metrics.detector):
        raise ValueError(f"unknown detector {detector!r}; known: {', '.join(dict.fromkeys(results.metrics.detector))}")
    return pd.DataFrame([test(results, detector) for test in CLAIMS.values()])


CLAIMS = {
    "C1": separated_clusters,
    "C2": contrastive_on_cifar10,
    "C3": cosine_on_cifar100,
    "C4": no_single_winner,
    "C5": cheap_cross_entropy,
}
