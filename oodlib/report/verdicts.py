"""Verdicts: the results of a study in; for each of the paper's claims C1 to C5 a word, and its numbers, out.

The claims are those of arXiv 2203.08549. Detectors are named before the results are seen. Comparisons are paired, run
by run of the same ID set, architecture and seed. A claim that must hold everywhere is supported when every one of its
95 % t intervals says so, which needs no correction; it is contradicted when one comparison does after Holm's correction
for all of them. What neither can tell is undecided: one seed decides nothing.
"""

from dataclasses import dataclass

import pandas as pd

from oodlib.report.paired import PAIR, Estimate, estimate, holm, paired_difference
from oodlib.report.ranks import judge, ranking
from oodlib.report.results import Results, group_means, of_classes
from oodlib.report.table_files import markdown

CONTRASTIVE = ("simclr", "supcon", "cider")  # joint contains cross-entropy, so it stands apart
MARGIN = 2.0  # AUROC points within which a cheaper objective counts as competitive
MUCH_CHEAPER = 1.5  # times the network inputs in training
WELL_SEPARATED = 0.5  # global separation: members are at most half as far from each other as from the nearest cluster
# published AUROC of CIFAR-10 against CIFAR-100: SSD (SimCLR, ResNet-50), CSI with labels (ResNet-18)
OUTSTANDING = 90.6
PUBLISHED_ACCURACY = {  # ID accuracy, %, ResNet-50
    "cifar10": {"ce": 95.0, "supcon": 96.0, "simclr": 93.6},
    "cifar100": {"ce": 75.3, "supcon": 76.5, "simclr": 70.7},
}
NEARLY = 1.0  # points of accuracy below the published one that count as near it


@dataclass(frozen=True)
class Verdict:
    """What a study says of one claim, and why.

    The verdict is "supported", "contradicted" or "undecided", of near and far OOD apart where they are ("near: …").
    The finding is a sentence with the numbers that decide, in brackets 95 % intervals, those of C2 and C4 corrected for
    the number of comparisons; the reason tells all.
    """

    claim: str
    verdict: str
    finding: str
    reason: str


def _needs(claim: str, what: str) -> Verdict:
    return Verdict(claim, "undecided", f"this study has no {what}", "")


def _everywhere(words: list[str]) -> str:
    """Return the word for a claim that must hold in every part."""
    if all(word == "supported" for word in words):
        return "supported"
    return "contradicted" if "contradicted" in words else "undecided"


def separated_clusters(results: Results, detector: str) -> Verdict:
    """C1: supervised contrastive training gives well separated clusters, its self-supervised counterpart does not."""
    claim = "C1: SupCon gives well separated clusters, SimCLR does not"
    separation = of_classes(results.clusters, "labels", "global_separation")
    kmeans = of_classes(results.clusters, "kmeans", "cluster_purity")
    per_run = separation.groupby(["objective", *PAIR]).value.mean().reset_index()
    by_set = {
        name: paired_difference(part, "value", "supcon", "simclr") for name, part in per_run.groupby("id_dataset")
    }
    by_set = {name: difference for name, difference in by_set.items() if difference}
    if not by_set:
        return _needs(claim, "pair of SupCon and SimCLR runs")
    means, purity = (t.groupby(["id_dataset", "objective"]).value.mean().unstack() for t in (per_run, kmeans))
    p_values = dict(zip(by_set, holm([difference.p() for difference in by_set.values()]), strict=True))
    words, found, texts = [], [], []
    for name, difference in by_set.items():
        supcon, simclr = (
            estimate(per_run[(per_run.id_dataset == name) & (per_run.objective == own)].value).interval()
            for own in ("supcon", "simclr")
        )
        well = supcon[0] >= WELL_SEPARATED > simclr[1]
        opposite = difference.mean < 0 and p_values[name] < 0.05
        above = difference.interval()[0] > 0
        words.append("contradicted" if opposite else "supported" if above and well else "undecided")
        of_ce = f", CE {means.ce[name]:.2f}" if "ce" in means else ""
        found.append(f"{name} {difference.brief()}, SupCon {means.supcon[name]:.2f}{of_ce}")
        listed = _separations(means.loc[name], purity.reindex(means.index).loc[name])
        texts.append(f"{name}: {listed}; separation of SupCon minus SimCLR {difference.text(p_values[name])}")
    return Verdict(
        claim,
        _everywhere(words),
        f"global separation, SupCon minus SimCLR: {'; '.join(found)} (well separated is {WELL_SEPARATED})",
        f"global separation of the classes (well separated: at least {WELL_SEPARATED}) / purity of k-means clusters; "
        + "; ".join(texts),
    )


def _separations(separation: pd.Series, purity: pd.Series) -> str:
    """Return "objective separation / purity" of all objectives of one ID set."""
    purity = purity.reindex(separation.index)
    return ", ".join(f"{name} {separation[name]:.2f} / {purity[name]:.2f}" for name in separation.dropna().index)


def _points(results: Results, id_dataset: str, group: str) -> pd.DataFrame:
    """Return mean AUROC in points over the near or far sets: a row a pair of runs, a column (objective, detector)."""
    means = group_means(results, ["auroc"])
    means = means[(means.group == group) & (means.id_dataset == id_dataset)]
    return means.assign(auroc=100 * means.auroc).pivot(index=PAIR, columns=["objective", "detector"], values="auroc")


def _minus_ce(points: pd.DataFrame, detector: str) -> dict[str, Estimate]:
    """Return each other objective minus cross-entropy with one detector."""
    if ("ce", detector) not in points:
        return {}
    others = [name for name, own in points if own == detector and name != "ce"]
    differences = {name: estimate(points[name, detector] - points["ce", detector]) for name in others}
    return {name: difference for name, difference in differences.items() if difference}


def _near_and_far(results: Results, id_dataset: str, detector: str, wanted=None) -> str:
    """Return the differences from cross-entropy, near and far, with p-values corrected for all of them."""
    found = {g: _minus_ce(_points(results, id_dataset, g), detector) for g in ("near", "far")}
    p_values = iter(holm([d.p() for differences in found.values() for d in differences.values()]))
    texts = {g: {name: d.text(next(p_values)) for name, d in differences.items()} for g, differences in found.items()}
    chosen = {g: [f"{n} {t}" for n, t in of.items() if wanted is None or n in wanted] for g, of in texts.items()}
    return "; ".join(f"{group} {', '.join(listed) or 'not measured'}" for group, listed in chosen.items())


def _trained(results: Results, id_dataset: str, objectives: list[str]) -> str:
    """Return ID accuracy, with the published one of a ResNet-50 where there is one, network and epochs."""
    runs = results.runs[(results.runs.id_dataset == id_dataset) & results.runs.objective.isin(objectives)]
    texts = []
    for (arch, name), part in runs.groupby(["arch", "objective"], sort=False):
        published = PUBLISHED_ACCURACY[id_dataset].get(name)
        there = f" (published, ResNet-50: {published})" if published else ""
        epochs = "–".join(str(e) for e in sorted(set(part.epochs)))
        texts.append(f"{name} {100 * part.id_accuracy.mean():.1f} %{there} after {epochs} epochs of {arch}")
    return "ID accuracy " + ", ".join(texts)


def contrastive_on_cifar10(results: Results, detector: str) -> Verdict:
    """C2: on CIFAR-10, contrastive training reaches outstanding detection: that published for CIFAR-100 as OOD."""
    claim = "C2: on CIFAR-10, contrastive training reaches outstanding detection"
    metrics = results.metrics
    chosen = metrics[(metrics.id_dataset == "cifar10") & (metrics.ood_dataset == "cifar100")]
    chosen = chosen[(chosen.detector == detector) & chosen.objective.isin(CONTRASTIVE)]
    if chosen.empty:
        return _needs(claim, "CIFAR-10 runs of a contrastive objective that were tested against CIFAR-100")
    reached = {key: estimate(100 * part.auroc) for key, part in chosen.groupby(["arch", "objective"], sort=False)}
    level = 1 - 0.05 / len(reached)  # the best of several must reach it: corrected for their number
    runs = results.runs[results.runs.id_dataset == "cifar10"]
    accuracy = 100 * runs.groupby(["arch", "objective"]).id_accuracy.mean()
    full = all(accuracy[key] >= PUBLISHED_ACCURACY["cifar10"].get(key[1], 95.0) - NEARLY for key in reached)
    verdict = "undecided"
    if any(found.interval(level)[0] >= OUTSTANDING for found in reached.values()):
        verdict = "supported"
    elif full and all(found.interval(level)[1] < OUTSTANDING for found in reached.values()):
        verdict = "contradicted"
    listed = ", ".join(f"{name} {found.text(level=level, form='.1f')}" for (_, name), found in reached.items())
    own = list(dict.fromkeys(chosen.objective))
    joint = f"; joint, which contains CE, apart: {_near_and_far(results, 'cifar10', detector, ('joint',))}"
    best = max(reached, key=lambda key: reached[key].mean)
    return Verdict(
        claim,
        verdict,
        f"AUROC against CIFAR-100, best of them: {best[1]} {reached[best].brief(level, '.1f')} at "
        f"{accuracy[best]:.0f} % ID accuracy; outstanding is {OUTSTANDING}",
        f"AUROC against CIFAR-100 with {detector}: {listed}; outstanding is the published {OUTSTANDING} (SSD, "
        f"ResNet-50; CSI with labels, ResNet-18); {_trained(results, 'cifar10', own)}; contradicted only at about "
        f"the published accuracy; minus CE: {_near_and_far(results, 'cifar10', detector, CONTRASTIVE)}"
        + (joint if "joint" in set(runs.objective) else ""),
    )


def cosine_on_cifar100(results: Results, detector: str) -> Verdict:
    """C3: on CIFAR-100, cross-entropy with cosine similarity beats every contrastive variant; near and far apart.

    Rivals are all other objectives with every shown detector of a global threshold. Joint training can keep the claim
    from support, but as it contains cross-entropy, it cannot contradict it.
    """
    claim = "C3: on CIFAR-100, cross-entropy with cosine beats every contrastive variant"
    ranked = results.metrics[results.metrics.threshold.eq("global") & results.metrics.seen.eq(0)]
    kept = ranked.detector.unique()
    words, found, texts = {}, [], []
    for group in ("near", "far"):
        points = _points(results, "cifar100", group)
        points = points.loc[:, [own in kept for _, own in points]] if len(points) else points
        word, short, text = _cosine_against_all(points)
        words[group] = word
        found.append(f"{group} {short}")
        texts.append(f"{group}: {text}")
    if not any(words.values()):
        return _needs(claim, "CIFAR-100 runs of both CE and a contrastive objective")
    objectives = [name for name in dict.fromkeys(results.runs.objective) if name in ("ce", *CONTRASTIVE, "joint")]
    return Verdict(
        claim,
        "; ".join(f"{group}: {word or 'undecided'}" for group, word in words.items()),
        f"AUROC points, CE with cosine minus the strongest contrastive rival: {'; '.join(found)}",
        f"AUROC points of ce labels/cosine; {'; '.join(texts)}; {_trained(results, 'cifar100', objectives)}",
    )


def _cosine_against_all(points: pd.DataFrame) -> tuple[str, str, str]:
    """Return the word, finding and reason for one group of OOD sets; no word where there is no rival."""
    own = ("ce", "labels/cosine")
    rivals = {key: estimate(points[own] - points[key]) for key in points if key[0] != "ce"} if own in points else {}
    rivals = {key: difference for key, difference in rivals.items() if difference}
    if not any(name in CONTRASTIVE for name, _ in rivals):
        return "", "not measured", "no rival was measured"
    p_values = dict(zip(rivals, holm([difference.p() for difference in rivals.values()]), strict=True))
    beaten = [key for key, difference in rivals.items() if difference.interval()[0] > 0]
    losing = [key for key, d in rivals.items() if d.mean < 0 and p_values[key] < 0.05 and key[0] in CONTRASTIVE]
    word = "contradicted" if losing else "supported" if len(beaten) == len(rivals) else "undecided"
    text = f"{points[own].mean():.1f}, above {len(beaten)} of {len(rivals)} rivals by the 95 % interval of each"
    short = "not measured"
    for kind, names in (("strongest contrastive rival", CONTRASTIVE), ("strongest joint one", ("joint",))):
        found = [key for key in rivals if key[0] in names]
        if found:
            best = min(found, key=lambda key: rivals[key].mean)
            text += f", {kind} {' '.join(best)}: CE minus it {rivals[best].text(p_values[best])}"
            if names == CONTRASTIVE:
                alike = _alike(points, rivals, best[1])
                short = f"({points[own].mean():.1f}) {rivals[best].brief()} ({' '.join(best)}{alike})"
                text += alike
    return word, short, text


def _alike(points: pd.DataFrame, rivals: dict[tuple, Estimate], detector: str) -> str:
    """Tell whether a rival's detector makes the difference: what CE has with it, and what rivals have with cosine."""
    if detector == "labels/cosine" or ("ce", detector) not in points:
        return ""
    cosine = [key for key in rivals if key[0] in CONTRASTIVE and key[1] == "labels/cosine"]
    best = min(cosine, key=lambda key: rivals[key].mean) if cosine else None
    beside = f", and CE with cosine minus {' '.join(best)} is {rivals[best].brief()}" if best else ""
    return f"; with it CE has {points['ce', detector].mean():.1f}{beside}"


def no_single_winner(results: Results, detector: str) -> Verdict:
    """C4: no combination wins everywhere, on near and on far OOD apart; `oodlib.report.ranks.judge` says when."""
    claim = "C4: no single combination wins everywhere"
    found = {group: ranking(results, group) for group in ("near", "far")}
    found = {group: own for group, own in found.items() if own and min(own.blocks.shape) >= 3}
    if not found:
        return _needs(claim, "three blocks and three combinations to rank")
    judged = {group: judge(own) for group, own in found.items()}
    archs = results.runs.arch.unique()
    scope = f"with {archs[0]} alone, nothing is said of how it depends on the architecture" if len(archs) == 1 else ""
    texts = [f"{group}: {text}" for group, (_, _, text) in judged.items()]
    return Verdict(
        claim,
        "; ".join(f"{group}: {word}" for group, (word, _, _) in judged.items()),
        "; ".join(f"{group}: {short}" for group, (_, short, _) in judged.items()),
        "; ".join([*texts, *([scope] if scope else [])]),
    )


def cheap_cross_entropy(results: Results, detector: str) -> Verdict:
    """C5: cross-entropy is competitive (within MARGIN AUROC points of every objective) at a much lower cost.

    Near OOD decides, of every ID set; far OOD is told too.
    """
    claim = "C5: cross-entropy is competitive at a much lower cost"
    datasets = list(dict.fromkeys(results.runs.id_dataset))
    near = {name: _minus_ce(_points(results, name, "near"), detector) for name in datasets}
    near = {name: differences for name, differences in near.items() if differences}
    if not near:
        return _needs(claim, "near-OOD AUROC of a CE run and another objective's")
    verdict = _competitive([difference for differences in near.values() for difference in differences.values()])
    inputs, times = (cost_ratios(results, spent) for spent in ("network_inputs", "training_seconds"))
    if verdict == "supported" and not inputs.min().ge(MUCH_CHEAPER).all():
        verdict = "undecided"
    listed = ", ".join(f"{name} {estimate(times[name]).text(form='.2f')}" for name in times)
    texts = [f"{name}: {_near_and_far(results, name, detector)}" for name in near]
    leaders = {name: max(own, key=lambda other: own[other].mean) for name, own in near.items()}
    best = [f"{name} {own} {near[name][own].brief()}" for name, own in leaders.items()]
    more = "–".join(dict.fromkeys(f"{ratio:.1f}" for ratio in (inputs.min().min(), inputs.max().max())))
    return Verdict(
        claim,
        verdict,
        f"near AUROC, the best other objective minus CE: {'; '.join(best)} ({MARGIN:.0f} are competitive); "
        f"training them passes {more} times as many images through the network",
        f"competitive is within {MARGIN:.0f} AUROC points of every objective on near OOD, in every ID set; minus CE "
        f"with {detector}, p of no difference: {'; '.join(texts)}; a much lower cost is that all others pass at least "
        f"{MUCH_CHEAPER} times as many images through the network in training, found {more}; in seconds, which the "
        f"machine's other work disturbs: {listed}",
    )


def _competitive(differences: list[Estimate]) -> str:
    """Return the word for "no objective is better than cross-entropy by MARGIN points or more"."""
    p_values = holm([difference.p(MARGIN) for difference in differences])
    if any(d.mean > MARGIN and p < 0.05 for d, p in zip(differences, p_values, strict=True)):
        return "contradicted"
    within = all(difference.interval()[1] < MARGIN for difference in differences)
    return "supported" if within else "undecided"


def cost_ratios(results: Results, spent: str) -> pd.DataFrame:
    """Return what training spent over what CE's did: a row a pair that has CE, a column an objective, NaN if not run.

    spent: "network_inputs", which no machine changes, or "training_seconds".
    """
    cost = results.runs.pivot_table(index=PAIR, columns="objective", values=spent)
    if "ce" not in cost:
        return pd.DataFrame(index=cost.index)
    return cost.div(cost.ce, axis=0).drop(columns="ce").dropna(how="all").dropna(axis=1, how="all")


def verdicts(results: Results, shown: Results, detector: str) -> pd.DataFrame:
    """Return the verdicts on C1 to C5, one row each: claim, verdict, finding, reason.

    C3 and C4 are of all detectors of `shown`; C2 and C5 compare objectives with `detector`. Both are chosen beforehand.
    """
    if detector not in set(results.metrics.detector):
        raise ValueError(f"unknown detector {detector!r}; known: {', '.join(dict.fromkeys(results.metrics.detector))}")
    return pd.DataFrame(
        [test(shown if claim in OF_ALL_DETECTORS else results, detector) for claim, test in CLAIMS.items()]
    )


def told(found: pd.DataFrame) -> str:
    """Return verdicts as Markdown: a table of the findings, below it the numbers and tests of each claim."""
    table = markdown(found[["claim", "verdict", "finding"]])
    reasons = [f"**{row.claim[:2]}.** {row.reason}." for row in found.itertuples() if row.reason]
    return "\n\n".join([table, *reasons])


CLAIMS = {
    "C1": separated_clusters,
    "C2": contrastive_on_cifar10,
    "C3": cosine_on_cifar100,
    "C4": no_single_winner,
    "C5": cheap_cross_entropy,
}
OF_ALL_DETECTORS = ("C3", "C4")
