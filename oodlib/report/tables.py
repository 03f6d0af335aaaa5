"""Tables of a report: AUROC of every detector, where images are from, how runs were made; as csv and as markdown."""

from pathlib import Path

import pandas as pd

from oodlib.data.catalogue import display_name, look_up
from oodlib.files import write_text
from oodlib.report.detectors import MAIN
from oodlib.report.means import group_means, mean_sd, over_seeds
from oodlib.report.results import SETTING, Results, choose, collect
from oodlib.study.run import ARTEFACTS


def write_table(
    folder: Path,
    name: str,
    tidy: pd.DataFrame,
    readable: pd.DataFrame | dict[str, pd.DataFrame] | None = None,
) -> str:
    """Write a table as csv, floats to six digits, and its form for reading as markdown; return the markdown.

    The form for reading may be several tables by their titles.
    """
    tables = readable if isinstance(readable, dict) else {"": tidy if readable is None else readable}
    write_text(folder / f"{name}.csv", tidy.to_csv(index=False, float_format="%.6g"))
    text = "\n\n".join(f"**{title}**\n\n" * bool(title) + markdown(table) for title, table in tables.items())
    write_text(folder / f"{name}.md", text + "\n")
    return text


def markdown(table: pd.DataFrame) -> str:
    """Return a table for reading as markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def main_table(results: Results, measure: str = "auroc") -> pd.DataFrame:
    """Return the tidy main table: one row a setting, detector and OOD set, with mean, sd and n over seeds, in percent.

    Beside the sets stand the means over the near and over the far sets, each averaged within a seed first.
    """
    metrics = results.metrics[[*SETTING, "seed", "detector", "group", "ood_dataset", measure]]
    means = group_means(results, [measure])
    means["ood_dataset"] = means.group + " mean"
    both = pd.concat([metrics, means])
    both[measure] *= 100
    return over_seeds(both, [*SETTING, "detector", "group", "ood_dataset"], measure).reset_index()


def with_intervals(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Return a main table with the columns low and high: DeLong's 95 % interval of AUROC, in percent, where n is 1.

    It tells how far the test images alone leave an AUROC open. Where there are several seeds, their sd tells more.
    """
    keys = [*SETTING, "detector", "ood_dataset"]
    intervals = results.intervals.groupby(keys)[["low", "high"]].mean() * 100
    table = table.merge(intervals, left_on=keys, right_index=True, how="left")
    table.loc[table.n > 1, ["low", "high"]] = float("nan")
    return table


def wide(table: pd.DataFrame, best: str = "max") -> pd.DataFrame:
    """Return a main table for reading: a row a setting and detector, n seeds, a column an OOD set, cells "mean ± sd".

    Means over near and far sets come first. The best of a column, its "max" or "min" mean as `best` says, is bold; so
    is what equals it at one decimal. Where there is one seed, and the columns low and high, its interval is shown.
    """
    groups = dict.fromkeys(table.group)
    columns = list(dict.fromkeys(name for group in groups for name in table[table.group == group].ood_dataset))
    columns.sort(key=lambda name: name not in ("near mean", "far mean"))
    top = table.groupby(["id_dataset", "ood_dataset"])["mean"].transform(best)
    bold = (table["mean"].round(1) == top.round(1)).map({True: "**", False: ""})
    shown = table.reindex(columns=["mean", "sd", "low", "high"]).itertuples(index=False)
    cells = bold + [mean_sd(*values) for values in shown] + bold
    keys = [*SETTING, "detector"]
    seeds = table.groupby(keys, sort=False).n.unique().map(lambda n: "–".join(str(k) for k in sorted(n)))
    spread = table.assign(cell=cells).pivot(index=keys, columns="ood_dataset", values="cell")
    return seeds.reset_index().merge(spread[columns].reset_index(), on=keys, how="left").fillna("")


def reading_tables(table: pd.DataFrame, best: str = "max") -> dict[str, pd.DataFrame]:
    """Return a main table for reading, one an ID set. Sets have the names that people know them by."""
    tables = {}
    for id_dataset, part in table.groupby("id_dataset", sort=False):
        found = wide(part, best).drop(columns="id_dataset")
        if found.arch.nunique() == 1:
            found = found.drop(columns="arch")
        tables[display_name(id_dataset)] = found.rename(columns=display_name)
    return tables


def product_table(results: Results) -> pd.DataFrame:
    """Return AUROC, in percent, of all combinations of the factors: a row each, with K in numerical order.

    Columns: setting, clustering, n_clusters, distance, threshold, and for the means over near and over far sets near,
    near_sd, near_n and so on: mean and sd over the seeds, with n.
    """
    parts = ["clustering", "n_clusters", "distance", "threshold"]
    about = results.metrics[results.metrics.seen == 0].drop_duplicates("detector").set_index("detector")[parts]
    means = group_means(results, ["auroc"])
    means = means[means.detector.isin(about.index)]
    columns = {}
    for group, own in means.groupby("group", sort=False):
        found = over_seeds(own.assign(auroc=100 * own.auroc), [*SETTING, "detector"], "auroc")
        columns |= {group: found["mean"], f"{group}_sd": found.sd, f"{group}_n": found.n}
    table = pd.DataFrame(columns).reset_index()
    for group in dict.fromkeys(means.group):
        table[f"{group}_n"] = table[f"{group}_n"].fillna(0).astype(int)
    table = table.join(about, on="detector").drop(columns="detector")
    order = {name: list(dict.fromkeys(results.metrics[name])) for name in [*SETTING, "clustering", "distance"]}
    table = table.sort_values(
        [*SETTING, *parts],
        key=lambda column: column.map(order[column.name].index) if column.name in order else column,
    )
    return table[[*SETTING, *parts, *columns]].reset_index(drop=True)


def main_table_text(study: str) -> str:
    """Return AUROC of the main detectors for a terminal: in percent, over the seeds of the complete runs, ± sd."""
    results = choose(collect(study), [], MAIN)
    n = sorted(results.runs.groupby(SETTING).size().unique())
    parts = [f"AUROC %, mean ± sd over {'–'.join(str(k) for k in n)} seed(s); ID is the positive class, ** the best"]
    if results.incomplete:
        parts.append(f"incomplete, and left out: {', '.join(results.incomplete)}")
    for title, table in reading_tables(main_table(results)).items():
        parts.append(f"{title}\n{table.to_markdown(index=False, disable_numparse=True)}")
    return "\n".join(parts)


def data_table(results: Results) -> pd.DataFrame:
    """Return where the image sets of a study are from: part in it, images used, source, terms and what must be known.

    Where encoders start from ImageNet's weights, the column "in ImageNet" says what these have seen. A set of the
    user's own has no source here.
    """
    metrics, whole = results.metrics, results.clusters[results.clusters.clustering == "none"]
    n_train = whole.groupby("id_dataset")["size"].max()
    rows = []
    for name in dict.fromkeys(results.runs.id_dataset):
        n_test = metrics[metrics.id_dataset == name].n_id.max()
        rows.append((name, "ID", f"{n_train.get(name, 0)} training, {n_test} test"))
    for (group, name), part in metrics[metrics.seen == 0].groupby(["group", "ood_dataset"], sort=False):
        id_sets = ", ".join(display_name(own) for own in dict.fromkeys(part.id_dataset))
        rows.append((name, f"{group} OOD of {id_sets}", f"{part.n_ood.max()} test"))
    entries = [look_up(name) for name, *_ in rows]
    columns = {
        "set": [entry.title for entry in entries],
        "part": [part for _, part, _ in rows],
        "images": [images for *_, images in rows],
        "source": [entry.source for entry in entries],
        "terms": [entry.terms for entry in entries],
        "note": [entry.note for entry in entries],
    }
    if results.runs.pretrained.astype(bool).any():
        columns["in ImageNet"] = [entry.in_imagenet for entry in entries]
    return pd.DataFrame(columns)


def run_table(results: Results) -> pd.DataFrame:
    """Return how each run was made: seed, epochs, accuracy, seconds of the four steps, threads, machine, versions.

    Seconds of training are those of all epochs, also of a run that was interrupted.
    """
    trained = results.history.groupby("run").seconds.sum()
    rows = []
    for run, record in zip(results.runs.itertuples(), results.records, strict=True):
        machine = record["train"]["environment"]
        seconds = {step: record[step]["seconds"] for step in ARTEFACTS} | {"train": trained[run.run]}
        versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "timm", "scikit-learn"))
        rows.append(
            {"run": run.run, "seed": run.seed, "epochs": run.epochs, "ID accuracy %": f"{100 * run.id_accuracy:.1f}"}
            | {f"{step} s": round(spent) for step, spent in seconds.items()}
            | {
                "threads": machine["threads"],
                "machine": f"{machine['device']}, {machine['processor']}",
                "versions": versions,
            }
        )
    return pd.DataFrame(rows)
