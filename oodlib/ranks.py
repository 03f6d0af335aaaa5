"""Ranks: the results of a study in; how its combinations of objective and detector rank over blocks, and who wins, out.

A block is an ID set, architecture, seed and OOD set; near and far OOD sets are ranked apart. Of a clustering that takes
a number of clusters one stands for all, with as many clusters as classes: twenty Ks of one clustering are no twenty
rivals. The same ranks stand in the verdict on C4 and in the critical-difference diagram.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.clustering import OWN_SIZE
from oodlib.paired import PAIR, Estimate, estimate
from oodlib.report import Results, n_classes, names_by_classes

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


def losses_of_best(found: Ranking) -> tuple[list[tuple[str, str, Estimate]], float]:
    """Return, for each pair, its name, its winner and how much the best by rank loses to it, and the interval's level.

    The winner of a pair has the best mean over seeds. It is chosen on the same data, among all others and on every
    pair, so the level is corrected for all of these comparisons (Bonferroni).
    """
    losses = []
    for (id_dataset, arch, ood), rows in found.blocks.groupby(level=OF_PAIR, sort=False):
        winner = rows.mean().idxmax()
        losses.append((f"{id_dataset} → {ood} ({arch})", winner, estimate(rows[winner] - rows[found.best])))
    return losses, 1 - 0.05 / (len(losses) * (found.blocks.shape[1] - 1))


def judge(found: Ranking) -> tuple[str, str, str]:
    """Return what a ranking says of "no combination wins everywhere": a word, a short sentence and a long one.

    Supported where the best by rank loses to the winner of some pair by a corrected interval above 0, contradicted
    where it is the best in every block of several seeds.
    """
    blocks, best = found.blocks, found.best
    losses, level = losses_of_best(found)
    wins = int((blocks[best] >= blocks.max(axis=1)).sum())
    winners = {winner for _, winner, _ in losses}
    lost = [(loss.interval(level)[0], loss.mean, pair, winner, loss) for pair, winner, loss in losses if winner != best]
    word = "supported" if any(low > 0 for low, *_ in lost) else "undecided"
    if wins == len(blocks) and min(loss.n for *_, loss in losses) > 1:
        word = "contradicted"
    n_others = len(found.ranks) - 1
    text = (
        f"{best} has the best mean rank, {found.ranks[best]:.1f} of {n_others + 1} combinations over {len(blocks)} "
        f"blocks (ID set, architecture, seed, OOD set); the critical difference, {found.critical_difference:.1f}, "
        f"tells it from {found.told_apart()} of the {n_others} others; Friedman p = {friedman(blocks):.1g}, over pairs "
        f"with seeds averaged {friedman(found.pairs()):.1g}; the {len(losses)} pairs have {len(winners)} winner(s)"
    )
    if not lost:
        return word, f"{best}, best by mean rank, wins every pair", f"{text}, itself"
    *_, pair, winner, loss = max(lost, key=lambda own: own[:2])
    lone = ", and one seed has no interval" if loss.n < 2 else ""
    short = f"{best}, best by mean rank, loses to {winner} by {loss.brief(level)} on {pair.split(' (')[0]}"
    return word, short, f"{text}; on {pair} it loses to {winner} by {loss.text(level=level)}{lone}"
