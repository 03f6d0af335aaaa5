"""Scores of images: kept and read as they were, and the images that they say a detector is most wrong on."""

import numpy as np
import pytest

from oodlib.study import Run
from oodlib.study.image_scores import extreme_table, load_image_scores, most_wrong, save_image_scores

SIZES = {"digits": 300, "folder:/any where/../set@64": 50, "photos": 2}  # a set's name may be a path


def draw_scores() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {d: {name: rng.normal(size=n) for name, n in SIZES.items()} for d in ("labels/cosine", "knn")}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run("study", "digits-none-ce-s0")


def test_every_image_keeps_its_set_its_place_and_its_scores(run):
    scores = draw_scores()
    save_image_scores(run, scores)
    table = load_image_scores(run)
    assert list(table) == ["dataset", "index", "labels/cosine", "knn"]
    assert list(dict.fromkeys(table.dataset)) == list(SIZES)
    for name, n in SIZES.items():
        part = table[table.dataset == name]
        assert part["index"].tolist() == list(range(n))
        for detector in scores:
            np.testing.assert_array_equal(part[detector], scores[detector][name].astype(np.float32))
    n_bytes = 4 * len(scores) * sum(SIZES.values())
    assert n_bytes < (run.path / "image_scores.npz").stat().st_size < n_bytes + 3000


def test_extremes_are_the_least_and_the_most_normal_images_from_the_extreme_inwards(run):
    scores = draw_scores()
    save_image_scores(run, scores)
    table = extreme_table(load_image_scores(run))
    assert list(table) == ["detector", "dataset", "extreme", "rank", "index", "score"]
    for (detector, dataset), part in table.groupby(["detector", "dataset"]):
        own = scores[detector][dataset]
        ascending, of, n = sorted(range(len(own)), key=own.__getitem__), part.set_index("extreme"), min(12, len(own))
        assert of.loc["least", "index"].tolist() == ascending[:n]
        assert of.loc["most", "index"].tolist() == ascending[::-1][:n]
        assert of.loc["most", "rank"].tolist() == list(range(n))
        np.testing.assert_array_equal(of["score"], own[of["index"]].astype(np.float32))


def test_most_wrong_are_known_images_that_look_odd_and_unknown_ones_that_look_normal(run):
    scores = draw_scores()
    save_image_scores(run, scores)
    wrong = most_wrong(load_image_scores(run), "knn", "digits").set_index("dataset")
    assert set(wrong.detector) == {"knn"}
    assert wrong.loc["digits", "index"].tolist() == np.argsort(scores["knn"]["digits"])[:12].tolist()
    for name in list(SIZES)[1:]:
        expected = np.argsort(-scores["knn"][name])[:12]
        assert wrong.loc[name, "index"].tolist() == expected.tolist()


def test_a_missing_or_broken_file_is_said(run):
    with pytest.raises(FileNotFoundError):
        load_image_scores(run)
    save_image_scores(run, draw_scores())
    path = run.path / "image_scores.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"image_scores\.npz holds no scores of images, or is cut short"):
        load_image_scores(run)
    np.savez(path, scores=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="holds no scores of images"):
        load_image_scores(run)
