"""Ranks: the results of a study in; how its combinations of objective and detector rank over blocks, and who wins, out.

A block is an ID set, architecture, seed and OOD set; near and far OOD sets are ranked apart. Of a clustering that takes
a number of clusters one stands for all, with as many clusters as classes: twenty Ks of one clustering are no twenty
rivals. The same ranks stand in the verdict on C4 and in the critical-difference diagram.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.clustering.clusters import OWN_SIZE
from oodlib.report.paired import PAIR, Estimate, estimate
from oodlib.report.results import Results, n_classes, names_by_classes

BLOCK = [*PAIR, "ood_dataset"]
OF_PAIR = ["id_dataset", "arch", "ood_dataset"]  # what the paper calls a pair, for one architecture


@dataclass(frozen=True)
class Ranking:
    """AUROC in points, one row a block and one column a combination; mean ranks, best first; the critical difference.

    Mean ranks further apart than the critical difference differ at 5 % (Nemenyi), whichever two of all are compared.
    """

    group: str
    blocks: pd.DataFrame
    ranks: pd.Series
    critical_difference: float

    @property
    def best(self) -> str:
        """The combination of the best mean rank."""
        return self.ranks.index[0]

    def pairs(self) -> pd.DataFrame:
        """Return AUROC averaged over seeds, which are not independent blocks: one row an ID set, arch and OOD set."""
        return self.blocks.groupby(level=OF_PAIR, sort=False).mean()

    def averaged(self) -> "Ranking":
        """Return the ranking whose blocks are the pairs."""
        return _rank(self.group, self.pairs())

    def told_apart(self) -> int:
        """Return how many combinations the Nemenyi test tells from the best."""
        return int((self.ranks - self.ranks.iloc[0] > self.critical_difference).sum())


def rank_matrix(results: Results, group: str) -> pd.DataFrame:
    """Return AUROC points of the near or the far sets: one row a block, one column an objective and detector.

    Where some ID set, architecture and seed has runs of all objectives, the blocks of the others are left out, else
    what a run lacks would take its objective out of all blocks. Combinations that a block lacks are left out.
    """
    metrics = results.metrics[(results.metrics.group == group) & (results.metrics.seen == 0)]
    own_size = metrics.clustering.isin([*OWN_SIZE, "none"])
    metrics = metrics[own_size | (metrics.n_clusters == metrics.id_dataset.map(n_classes(results)))]
    names = names_by_classes(replace(results, metrics=metrics)).str.replace("-{classes}/", "/", regex=False)
    blocks = metrics.assign(combination=metrics.objective + " " + names, points=100 * metrics.auroc)
    n_objectives = blocks.groupby(PAIR).objective.transform("nunique")
    if len(blocks) and (n_objectives == blocks.objective.nunique()).any():
        blocks = blocks[n_objectives == blocks.objective.nunique()]
    return blocks.pivot_table(index=BLOCK, columns="combination", values="points").dropna(axis=1)


def ranking(results: Results, group: str) -> Ranking | None:
    """Return the ranking over the near or the far sets; None where there are no two combinations to rank."""
    blocks = rank_matrix(results, group)
    if blocks.empty or blocks.shape[1] < 2:
        return None
    return _rank(group, blocks)


def _rank(group: str, blocks: pd.DataFrame) -> Ranking:
    ranks = blocks.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    return Ranking(group, blocks, ranks, critical_difference(*blocks.shape[::-1]))


def critical_difference(k: int, n: int) -> float:
    """Return how far two of k mean ranks over n blocks must lie apart to differ at 5 % (Demšar 2006, Nemenyi)."""
    return float(stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n)))


def friedman(blocks: pd.DataFrame) -> float:
    """Return the p-value of the Friedman test that all combinations rank alike; NaN for fewer than 3 or one block."""
    if len(blocks) < 2 or blocks.shape[1] < 3:
        return np.nan
    return float(stats.friedmanchisquare(*blocks.to_numpy().T).pvalue)


def losses(found: Ranking) -> tuple[dict[str, dict[str, tuple[str, Estimate]]], float]:
    """Return, for each pair and combination, the pair's winner and how much the combination loses to it; and a level.

    The winner of a pair has the best mean over seeds; what is as good is its own winner. What is lost on a seed is
    measured against the combination that the other seeds found best: a winner chosen on the seed itself would win there
    by luck as well. That a combination does not win everywhere is a claim about all pairs, so the intervals' level is
    corrected for their number (Bonferroni); that none does is one about all combinations at once and needs no more.
    """
    by_pair = {}
    for (id_dataset, arch, ood), rows in found.blocks.groupby(level=OF_PAIR, sort=False):
        means = rows.mean()
        first, best = means.idxmax(), means.max()
        others = rows.sum() - rows if len(rows) > 1 else rows
        winning = np.array([rows.loc[seed, name] for seed, name in others.idxmax(axis=1).items()])
        by_pair[f"{id_dataset} → {ood} ({arch})"] = {
            name: (name if means[name] == best else first, estimate(winning - rows[name])) for name in rows
        }
    return by_pair, 1 - 0.05 / len(by_pair)


def judge(found: Ranking) -> tuple[str, str, str]:
    """Return what a ranking says of "no combination wins everywhere": a word, a short sentence and a long one.

    Supported where every combination loses to the winner of some pair by a corrected interval above 0, contradicted
    where one is the best in every block of several pairs and seeds.
    """
    blocks, best = found.blocks, found.best
    by_pair, level = losses(found)
    losing = [name for name in blocks if any(own[name][1].interval(level)[0] > 0 for own in by_pair.values())]
    of_best = {pair: own[best] for pair, own in by_pair.items()}
    always = (blocks[best] >= blocks.max(axis=1)).all()
    word = "supported" if len(losing) == blocks.shape[1] else "undecided"
    if always and len(by_pair) > 1 and min(loss.n for _, loss in of_best.values()) > 1:
        word = "contradicted"
    lost = {pair: own for pair, own in of_best.items() if own[0] != best}
    sure = f"{len(losing)} of {blocks.shape[1]} combinations lose some pair for sure"
    text = f"{_tests(found)}; it wins {len(by_pair) - len(lost)} of {len(by_pair)} pairs; {sure}"
    if not lost:
        return word, f"{best}, best by mean rank, wins every pair; {sure}", text
    pair = max(lost, key=lambda own: (lost[own][1].interval(level)[0], lost[own][1].mean))
    winner, loss = lost[pair]
    lone = ", and one seed has no interval" if loss.n < 2 else ""
    where = f"{pair.split(' (')[0]} by {loss.brief(level, '.2f')}"
    short = f"{best}, best by mean rank, loses to {winner} on {where}; {sure}"
    return word, short, f"{text}; on {pair} it loses to {winner} by {loss.text(level=level)}{lone}"


def _tests(found: Ranking) -> str:
    """Say who has the best mean rank, and what the tests of Friedman and Nemenyi find."""
    averaged, n = found.averaged(), len(found.ranks)
    return (
        f"{found.best} has the best mean rank, {found.ranks.iloc[0]:.1f} of {n} combinations over {len(found.blocks)} "
        f"blocks (ID set, architecture, seed, OOD set); the critical difference, {found.critical_difference:.1f}, "
        f"tells it from {found.told_apart()} of the {n - 1} others, Friedman p = {friedman(found.blocks):.1g}; with "
        f"seeds averaged, {averaged.critical_difference:.1f}, {averaged.told_apart()} and "
        f"{friedman(averaged.blocks):.1g}"
    )
