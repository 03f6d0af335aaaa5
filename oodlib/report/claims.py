"""Claims: the rules that decide the paper's C1 to C5 (arXiv 2203.08549), a function each.

Each rule is the docstring of its function, named before the results are seen. It holds a number against a margin: the
95 % t interval of the number over seeds beyond the margin on one side supports the claim, on the other contradicts it.
An interval that spans the margin leaves it undecided, and so does one seed, which has no interval. A verdict is that of
one study, at the accuracy of its encoders. What is the best of several is chosen on the other seeds
(`means.best_of_others`), so no interval needs a correction for their number.
"""

import numpy as np
import pandas as pd

from oodlib.data.catalogue import display_name
from oodlib.report.means import Estimate, best_of_others, estimate, group_means
from oodlib.report.published import figures
from oodlib.report.ranks import auroc_points
from oodlib.report.results import Results, of_classes

CONTRASTIVE = ("simclr", "supcon", "cider")
DEARER = (*CONTRASTIVE, "joint")  # joint contains cross-entropy, so it is a rival in cost alone
WELL_SEPARATED = 0.5  # members are half as far from each other as from the nearest cluster; C1
COMPETITIVE = 2.0  # AUROC points; C5
MUCH_CHEAPER = 1.5  # times the network inputs in training; C5
WORTH_NAMING = 1.0  # AUROC points that the best combination must lose somewhere; C4
WORDS = ("supported", "contradicted", "undecided")
COLUMNS = ["claim", "id_dataset", "group", "verdict", "number", "value", "low", "high", "n", "margin", "note", "where"]


def decide(found: Estimate, margin: float, above: bool = True) -> str:
    """Return the word for "the number is above (or below) the margin"."""
    if found.low > margin:
        return WORDS[0] if above else WORDS[1]
    if found.high < margin:
        return WORDS[1] if above else WORDS[0]
    return WORDS[2]


def _row(place: tuple[str, str], number: str, found: Estimate, margin: float, word: str, note: str, where: str) -> dict:
    """Return a row of the table; place: ID set and group of OOD sets. An undecided row says why."""
    reason = {"undecided": "one seed" if found.n == 1 else "the interval spans the margin"}.get(word)
    values = (*place, word, number, found.mean, found.low, found.high, found.n, margin)
    return dict(zip(COLUMNS[1:], (*values, f"{note}; {reason}" if reason else note, where), strict=True))


def separated_clusters(results: Results, detector: str) -> list[dict]:
    """C1: supervised contrastive training gives well separated clusters, its self-supervised counterpart does not.

    The number is the global separation of the classes, averaged over them. Well separated is at least 0.5, which
    Kaufman and Rousseeuw (1990) call a reasonable structure for silhouettes, the same ratio of a point. Supported where
    SupCon's interval lies above 0.5 and SimCLR's below, contradicted where one of them lies on the wrong side. The
    table shows the objective that decides: one on the wrong side, else the undecided one, else SupCon.
    """
    separation = of_classes(results.clusters, "labels", "global_separation")
    per_run = separation.groupby(["id_dataset", "objective", "arch", "seed"]).value.mean()
    rows = []
    for id_dataset, own in per_run.groupby(level="id_dataset", sort=False):
        by_objective = dict(iter(own.groupby(level="objective")))
        if {"supcon", "simclr"} <= by_objective.keys():
            parts = []
            for name in ("supcon", "simclr"):
                found = estimate(by_objective[name])
                parts.append((decide(found, WELL_SEPARATED, above=name == "supcon"), name, found))
            word, name, found = max(parts, key=lambda part: ("supported", "undecided", "contradicted").index(part[0]))
            means = ", ".join(f"{other} {part.mean():.2f}" for other, part in by_objective.items() if other != name)
            note = f"{means}; {_accuracy(results, id_dataset, name)}"
            where = f"clusters.csv, separation_{id_dataset}.png"
            rows.append(_row((id_dataset, ""), f"global separation, {name}", found, WELL_SEPARATED, word, note, where))
    return rows


def _by_seed(results: Results, id_dataset: str, group: str) -> pd.DataFrame:
    """Return AUROC points over near or far sets: a row an architecture and seed, a column (objective, detector)."""
    means = group_means(results, ["auroc"])
    means = means[(means.group == group) & (means.id_dataset == id_dataset)]
    means = means.assign(points=100 * means.auroc)
    return means.pivot(index=["arch", "seed"], columns=["objective", "detector"], values="points")


def _accuracy(results: Results, id_dataset: str, *objectives: str) -> str:
    """Return the ID accuracy of objectives, with the published one of a ResNet-50 where there is one."""
    known = figures()
    known = known[known.against.eq("ID accuracy") & known.network.str.startswith("ResNet-50")]
    known = known[known.id_dataset == id_dataset].set_index("objective").published
    runs = results.runs[results.runs.id_dataset == id_dataset].groupby("objective").id_accuracy.mean() * 100
    published = {name: f" (published {known[name]:.1f})" for name in objectives if name in known}
    return "ID accuracy " + ", ".join(f"{name} {runs[name]:.1f} %{published.get(name, '')}" for name in objectives)


def contrastive_on_cifar10(results: Results, detector: str) -> list[dict]:
    """C2: on CIFAR-10, contrastive training reaches outstanding detection.

    The number is AUROC against CIFAR-100 with the detector named beforehand, of the contrastive objective that the
    other seeds find best. Outstanding is the best that is published of a contrastive ResNet on this pair.
    """
    metrics = results.metrics
    chosen = metrics[(metrics.id_dataset == "cifar10") & (metrics.ood_dataset == "cifar100")]
    chosen = chosen[(chosen.detector == detector) & chosen.objective.isin(CONTRASTIVE)]
    if chosen.empty:
        return []
    outstanding = figures().query("id_dataset == 'cifar10' and against == 'cifar100'").published.max()
    chosen = chosen.assign(points=100 * chosen.auroc)
    best = best_of_others(chosen.pivot(index=["arch", "seed"], columns="objective", values="points"))
    found = estimate(best.value)
    name = best.chosen.mode()[0]
    number, note = f"AUROC against CIFAR-100, {name} with {detector}", _accuracy(results, "cifar10", name)
    word = decide(found, outstanding)
    return [_row(("cifar10", "near"), number, found, outstanding, word, note, "main_auroc.csv")]


def cosine_on_cifar100(results: Results, detector: str) -> list[dict]:
    """C3: on CIFAR-100, cross-entropy with cosine similarity beats every contrastive variant; near and far apart.

    The number is AUROC of CE with labels/cosine minus that of the strongest rival: the contrastive objective with any
    shown detector of a global threshold that the other seeds find best. The margin is 0.
    """
    plain = results.metrics[results.metrics.threshold.eq("global") & results.metrics.seen.eq(0)].detector.unique()
    rows = []
    for group in ("near", "far"):
        points = _by_seed(results, "cifar100", group)
        own = ("ce", "labels/cosine")
        rivals = [key for key in points if key[0] in CONTRASTIVE and key[1] in plain]
        if own in points and rivals:
            best = best_of_others(points[rivals])
            found = estimate(points[own] - best.value)
            if found:
                rival = best.chosen.mode()[0]
                note = f"CE {points[own].mean():.1f}; {_accuracy(results, 'cifar100', 'ce', rival[0])}"
                number = f"AUROC points, CE with cosine minus {' with '.join(rival)}"
                word = decide(found, 0.0)
                rows.append(_row(("cifar100", group), number, found, 0.0, word, note, "main_auroc.csv"))
    return rows


def no_single_winner(results: Results, detector: str) -> list[dict]:
    """C4: no single combination of objective and detector wins everywhere; near and far apart, over all ID sets.

    The other seeds name the combination of the best mean rank over all pairs of ID and OOD set, the pair on which it
    loses most, and the winner there. The number is what it loses there on this seed, in AUROC points; a loss of one
    point is worth naming. Needs two pairs.
    """
    rows = []
    for group in ("near", "far"):
        points = auroc_points(results, group)
        points = points.assign(combination=points.objective + " with " + points.detector)
        by_seed = {
            seed: part.pivot_table(index=["id_dataset", "arch", "ood_dataset"], columns="combination", values="points")
            for seed, part in points.groupby("seed")
        }
        lost = pd.DataFrame([_worst_loss(by_seed, seed) for seed in by_seed]).dropna()
        if len(lost):
            found, last = estimate(lost.loss), lost.iloc[lost.loss.argmax()]
            pairs = f"{display_name(last.id_dataset)} → {display_name(last.ood_dataset)}"
            number = "AUROC points that the best combination loses on its worst pair"
            note, where = f"as {last.best} to {last.winner} on {pairs}", f"ranks_{group}.png, product.csv"
            word = decide(found, WORTH_NAMING)
            rows.append(_row(("all", group), number, found, WORTH_NAMING, word, note, where))
    return rows


def _worst_loss(by_seed: dict[int, pd.DataFrame], seed: int) -> dict:
    """Return what the best combination of the other seeds loses on this one, where it loses most on the others."""
    own = by_seed[seed]
    others = [table for other, table in by_seed.items() if other != seed] or [own]
    means = pd.concat(others).groupby(level=[0, 1, 2], sort=False).mean().reindex(own.index)
    means = means.reindex(columns=own.columns)[own.notna()].dropna(how="all").dropna(axis=1)
    if len(means) < 2 or means.shape[1] < 2:
        return {"loss": np.nan}
    best = means.rank(axis=1, ascending=False).mean().idxmin()
    pair = (means.max(axis=1) - means[best]).idxmax()
    winner = means.loc[pair].idxmax()
    about = dict(zip(means.index.names, pair, strict=True))
    return {"loss": own.loc[pair, winner] - own.loc[pair, best], "best": best, "winner": winner} | about


def cheap_cross_entropy(results: Results, detector: str) -> list[dict]:
    """C5: cross-entropy is competitive at a much lower cost; near and far apart.

    The number is AUROC of the dearer objective (contrastive or joint) that the other seeds find best, minus that of CE,
    both with the detector named beforehand. Competitive is less than two points below. A much lower cost is that the
    rival passes at least 1.5 times as many images through the network in training, which no machine changes; where it
    does not, the claim is contradicted.
    """
    rows = []
    for id_dataset in dict.fromkeys(results.runs.id_dataset):
        inputs = results.runs[results.runs.id_dataset == id_dataset].groupby("objective").network_inputs.mean()
        for group in ("near", "far"):
            points = _by_seed(results, id_dataset, group)
            rivals = [key for key in points if key[0] in DEARER and key[1] == detector]
            if ("ce", detector) in points and rivals:
                best = best_of_others(points[rivals])
                found = estimate(best.value - points["ce", detector])
                if found:
                    rival = best.chosen.mode()[0][0]
                    ratio = inputs[rival] / inputs["ce"]
                    word = decide(found, COMPETITIVE, above=False) if ratio >= MUCH_CHEAPER else WORDS[1]
                    note = f"{ratio:.1f} times the images of CE; {_accuracy(results, id_dataset, 'ce', rival)}"
                    number = f"AUROC points, {rival} minus CE, {detector}"
                    where = "main_auroc.csv, cost.csv"
                    rows.append(_row((id_dataset, group), number, found, COMPETITIVE, word, note, where))
    return rows


CLAIMS = {  # claim: what it says, its rule, whether that is over the detectors shown
    "C1": ("SupCon gives well separated clusters, SimCLR does not", separated_clusters, False),
    "C2": ("on CIFAR-10, contrastive training reaches outstanding detection", contrastive_on_cifar10, False),
    "C3": ("on CIFAR-100, cross-entropy with cosine beats every contrastive variant", cosine_on_cifar100, True),
    "C4": ("no single combination wins everywhere", no_single_winner, True),
    "C5": ("cross-entropy is competitive at a much lower cost", cheap_cross_entropy, False),
}
NEEDS = {
    "C1": "needs runs of SupCon and SimCLR",
    "C2": "needs CIFAR-10 runs of a contrastive objective, tested against CIFAR-100",
    "C3": "needs CIFAR-100 runs of CE and of a contrastive objective",
    "C4": "needs two pairs of ID and OOD set of one group",
    "C5": "needs runs of CE and of a contrastive or joint objective",
}


def verdicts(results: Results, shown: Results, detector: str) -> pd.DataFrame:
    """Return the verdicts on C1 to C5: the columns of COLUMNS, numbers in the unit that `number` names.

    C3 and C4 are over all detectors of `shown`; C2 and C5 compare objectives with `detector`. Both are named
    beforehand. A claim that a study cannot test has one row that says so.
    """
    if detector not in set(results.metrics.detector):
        raise ValueError(f"unknown detector {detector!r}; known: {', '.join(dict.fromkeys(results.metrics.detector))}")
    rows = []
    for claim, (_, test, over_shown) in CLAIMS.items():
        found = test(shown if over_shown else results, detector) or [{"verdict": "not tested", "note": NEEDS[claim]}]
        rows += [{"claim": claim} | row for row in found]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(**{name: table[name].fillna("") for name in ("id_dataset", "group", "number", "where")})


def reading_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return verdicts for reading: claim, verdict, the number that decides, where to look; a row a claim."""
    rows = []
    for claim, part in found.groupby("claim", sort=False):
        verdicts_, numbers = [], []
        for row in part.itertuples():
            name = "" if row.id_dataset == "all" else display_name(row.id_dataset)
            place = f"{name} {row.group}".strip()
            verdicts_.append(f"{place}: {row.verdict}" if place else row.verdict)
            interval = f"[{row.low:.2f}, {row.high:.2f}; n = {row.n:.0f}]" if row.n > 1 else "[n = 1]"
            number = f"{row.number}: {row.value:.2f} {interval}, margin {row.margin:g} ({row.note})"
            numbers.append(f"{place}: {number}" if row.number else row.note)
        where = ", ".join(dict.fromkeys(name for names in part["where"] for name in names.split(", ") if name))
        rows.append((f"{claim}: {CLAIMS[claim][0]}", "<br>".join(verdicts_), "<br>".join(numbers), where))
    return pd.DataFrame(rows, columns=["claim", "verdict", "the number that decides", "where to look"])
