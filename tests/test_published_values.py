"""Losses and measures against numbers that published implementations gave for one fixed batch, in float64.

Every constant was printed by running the implementation named above it on `Z` and `Y` once; none is ours, and no code
of theirs is here. A comment says which version, which call and which convention; where conventions differ, the test
converts. rsc and oodformer round to float32: within 1e-6 absolute; everything else within 1e-6 of the value.
No published code was found for dispersion and compactness in degrees. nmi, ari, silhouette,
Davies-Bouldin and Calinski-Harabasz are compared with scikit-learn itself in test_separation.py.
"""

import math

import numpy as np
import pytest
import torch

from oodlib.clustering.collapse import alignment, cdnv, neural_collapse, rankme, uniformity
from oodlib.losses import compactness_loss, dispersion_loss, nt_xent_loss, supcon_loss, update_prototypes
from oodlib.separation import cluster_purity, global_separation, local_purity, separation_curve

Z = np.array(
    [
        [0.9, 0.3, -0.2, 1.1],
        [-0.9, 1.9, 0.5, 0.1],
        [0.2, -0.7, 1.4, -0.3],
        [1.3, 0.6, 0.1, 0.8],
        [0.1, 0.9, -0.6, 0.4],
        [0.5, -0.2, -0.1, 1.6],
        [-0.8, 0.7, 0.3, 0.6],
        [-0.3, -1.1, 0.8, 0.2],
        [0.7, 0.4, 0.9, 0.5],
        [0.6, 1.0, -0.3, -0.5],
    ]
)
Y = np.array([0, 1, 2, 0, 1, 0, 1, 2, 0, 2])  # 4, 3 and 3 rows; below, z is Z, y is Y and u is Z at unit norm
CLUSTERS = np.array([0, 0, 1, 0, 1, 1, 1, 2, 0, 2])
TENSOR, LABELS = torch.from_numpy(Z), torch.from_numpy(Y)  # two views of five images: rows 0-4, then rows 5-9


def near(value):
    return pytest.approx(value, rel=1e-6)


# HobbitLong/SupContrast losses.py, commit 2728c677: L_out, unit norm by the caller, features (images, views, d), loss
# times temperature / base_temperature, 0.07 by default: divide by temperature / 0.07.
# SupConLoss(temperature)(u[:, None, :], y)
@pytest.mark.parametrize(("temperature", "published"), [(0.1, 5.828106671161207), (0.5, 13.94899222604074)])
def test_supcon_is_supcontrast_without_its_hidden_factor(temperature, published):
    assert supcon_loss(TENSOR, LABELS, temperature).item() == near(published / (temperature / 0.07))


# The same code, SupConLoss(temperature, base_temperature=temperature)(torch.stack([u[:5], u[5:]], dim=1), y[:5]): the
# factor is 1, and two views of image i are our rows i and n + i.
@pytest.mark.parametrize(("temperature", "published"), [(0.1, 1.9852724743116592), (0.5, 1.5339784725454666)])
def test_supcon_of_two_views_is_supcontrast(temperature, published):
    assert supcon_loss(TENSOR, LABELS[:5].repeat(2), temperature).item() == near(published)


# pytorch-metric-learning 2.9.0: L_out, unit norm inside (CosineSimilarity), no factor, and its AvgNonZeroReducer leaves
# out anchors without a positive. SupConLoss(temperature)(z, y), then with y[0] = 7, whose row has no positive.
@pytest.mark.parametrize(
    ("temperature", "published", "with_single"),
    [(0.1, 4.079674669812844, 4.527424779143837), (0.5, 1.9528589116457042, 2.0372802223901436)],
)
def test_supcon_is_pytorch_metric_learning(temperature, published, with_single):
    assert supcon_loss(TENSOR, LABELS, temperature).item() == near(published)
    y = torch.tensor([7, *Y[1:]])
    assert supcon_loss(TENSOR, y, temperature).item() == near(with_single)


# Three give one value, to 1e-15, mean over all 2n rows, both directions:
# pytorch-metric-learning 2.9.0, NTXentLoss(temperature)(z, torch.arange(5).repeat(2)): labels name the image, not the
#   class (with classes its denominator leaves out the other positives, and it is neither L_out nor L_in);
# lightly 1.6.0, NTXentLoss(temperature)(z[:5], z[5:]);
# SupContrast 2728c677, SupConLoss(temperature, base_temperature=temperature)(torch.stack([u[:5], u[5:]], dim=1)).
@pytest.mark.parametrize(("temperature", "published"), [(0.1, 0.4370009691772257), (0.5, 1.2243241715185802)])
def test_nt_xent_is_pytorch_metric_learning_lightly_and_supcontrast(temperature, published):
    assert nt_xent_loss(TENSOR, temperature).item() == near(published)


# deeplearning-wisc/cider utils/losses.py, commit b52dbd65, `.cuda()` a no-op. n_cls 3, feat_dim 4:
# dis = DisLoss(args, F.normalize as a module, [(z[:6], y[:6])], temperature) starts at the class means of u[:6], START;
# dis(u, y) moves dis.prototypes by one embedding after another, then disperses them; then
# CompLoss(args, temperature)(u, dis.prototypes, y). Hidden factors as in SupContrast: DisLoss is times
# temperature / 0.1, CompLoss times temperature / 0.07 (so their total loss at 0.1 weighs compactness by w / 0.7).
START = [
    [0.605807533605469, 0.16083239791361076, -0.047974277483513586, 0.7777072975793345],
    [-0.1876413257361613, 0.9425130947690286, -0.16348170851632757, 0.22301015682131256],
    [0.12451456127293808, -0.43580096445528327, 0.8716019289105665, -0.18677184190940713],
]
MOVED = {
    0.5: [
        [0.5974083089559987, 0.21840826582617204, 0.3617763003451491, 0.6815563441988598],
        [-0.4165554446163425, 0.8135010757975564, -0.011533518625790063, 0.40566555089729806],
        [0.5185477849135371, 0.15339627745759088, 0.6682530234297387, -0.5108969304081117],
    ],
    0.95: [
        [0.6123405175994647, 0.1703632680366476, -0.011191740247433283, 0.7719392413656188],
        [-0.21248187228997556, 0.9360511537481908, -0.1461895328867546, 0.23934976914377812],
        [0.13592507027006534, -0.4267340736533536, 0.8722312054254006, -0.1965582100484349],
    ],
}


@pytest.mark.parametrize(
    ("decay", "temperature", "dispersion", "compactness"),
    [
        (0.5, 0.1, 1.7365947495717062, 0.10969564438835229),
        (0.5, 0.5, 0.8807617139822997, 3.314887028218703),
        (0.95, 0.1, 0.25414755200947986, 1.383663516342007),
        (0.95, 0.5, -1.0139004434355958, 3.7323762515855323),
    ],
)
def test_cider_is_its_authors_without_their_hidden_factors(decay, temperature, dispersion, compactness):
    prototypes = update_prototypes(torch.tensor(START, dtype=torch.float64), TENSOR, LABELS, decay)
    np.testing.assert_allclose(prototypes, MOVED[decay], rtol=1e-6)
    assert dispersion_loss(prototypes, temperature).item() == near(dispersion / (temperature / 0.1))
    assert compactness_loss(TENSOR, LABELS, prototypes, temperature).item() == near(compactness / (temperature / 0.07))


# Columns are fractions 0.2, 0.4, 0.6, 0.8, 1. Both count every ordered pair inside a cluster, a point with itself too:
# include_self=True. Euclidean: abojchevski/rsc rsc/evaluation.py, commit c9778b2f, global_separation(z, y,
# num_samples=5). Cosine: rajatkoner08/oodformer evaluate_cluster_metrics.py, commit f2aa2ad3, with np.int = int,
# global_separation(z, y, "cosine", num_samples=5).
@pytest.mark.parametrize(
    ("metric", "published"),
    [
        (
            "euclidean",
            [
                [1.0, 0.8566989898681641, 0.7321300506591797, 0.6435648798942566, 0.5805691480636597],
                [1.0, 1.0, 0.6865732073783875, 0.5793548226356506, 0.5150121450424194],
                [1.0, 1.0, 0.7778993844985962, 0.4942874014377594, 0.3513813614845276],
            ],
        ),
        (
            "cosine",
            [
                [1.0, 0.9550649523735046, 0.899293065071106, 0.8282807469367981, 0.7418571710586548],
                [1.0, 1.0, 0.9060929417610168, 0.7687506079673767, 0.6870510578155518],
                [1.0, 1.0, 0.8917862176895142, 0.479263573884964, 0.2169748991727829],
            ],
        ),
    ],
)
def test_global_separation_with_self_is_rsc_and_oodformer(metric, published):
    found = separation_curve(Z, Y, (0.2, 0.4, 0.6, 0.8, 1.0), metric, include_self=True)
    np.testing.assert_allclose(found.T, published, rtol=0, atol=1e-6)


# oodformer f2aa2ad3, pcc_separation_ood(z, y, metric, num_class=3): mean distances between clusters. Ours leaves the n
# zeros of a point with itself out of n² pairs, so the diagonal is times n / (n - 1).
@pytest.mark.parametrize(
    ("metric", "published"),
    [
        (
            "euclidean",
            [
                [0.8532044291496277, 2.034195899963379, 2.0850956439971924],
                [2.034195899963379, 0.9865602850914001, 2.267303943634033],
                [2.0850956439971924, 2.267303943634033, 1.3524318933486938],
            ],
        ),
        (
            "cosine",
            [
                [0.22117319703102112, 0.85678631067276, 0.9949270486831665],
                [0.85678631067276, 0.268130362033844, 1.1985172033309937],
                [0.9949270486831665, 1.1985172033309937, 0.7790528535842896],
            ],
        ),
    ],
)
def test_global_separation_of_distinct_pairs_is_the_mean_distances_of_oodformer(metric, published):
    means, sizes = np.array(published), np.array([4, 3, 3])
    within = np.diagonal(means) * sizes / (sizes - 1)
    nearest = np.where(np.eye(3, dtype=bool), np.inf, means).min(axis=1)
    expected = (nearest - within) / np.maximum(nearest, within)
    np.testing.assert_allclose(global_separation(Z, Y, metric=metric), expected, rtol=0, atol=1e-6)


def test_purity_is_oodformer_and_rsc():
    # oodformer f2aa2ad3, cluster_purity(clusters, y): clusters in increasing label order, rounded to five digits
    np.testing.assert_allclose(cluster_purity(CLUSTERS, Y), [0.75, 0.5, 1.0], rtol=1e-6)
    # rsc c9778b2f, local_purity(z, y, nn): nn neighbours and the point itself
    found = [local_purity(Z, Y, n_neighbors) for n_neighbors in (1, 3, 5)]
    np.testing.assert_allclose(found, [0.9, 0.725, 0.5666666666666667], rtol=1e-6)


def test_neural_collapse_is_papyan_han_and_donoho():
    # neuralcollapse/neuralcollapse neuralcollapse.ipynb, commit 451828ad, analysis() of a linear layer on batches z[:6]
    # and z[6:], C = 3: Sw_invSb is not divided by C, norm_M_CoV has the standard deviation over C - 1, cos_M is ours
    found = neural_collapse(Z, Y)
    assert found["nc1"] == near(0.6848147612744491 / 3)
    assert found["nc2_norms"] == near(0.07285608726841754 * math.sqrt(2 / 3))
    assert found["nc2_angles"] == near(0.09034859586586645)


def test_cdnv_and_nc1_are_rhubarbwu():
    # rhubarbwu/neural-collapse measure.py and kernels.py c3864c26, util.py 483ccd67, accumulate.py 05bd51d0, float64:
    # variability_cdnv(M, V) with M and V of MeanAccumulator and VarNormAccumulator: variances over n, not n - 1
    assert cdnv(Z, Y) == near(0.3314739445718303)
    # covariance_pinv(M, V_intra, m_G), V_intra of CovarAccumulator: divided by C, but Σ_B over d = 4 and not over C = 3
    assert neural_collapse(Z, Y)["nc1"] == near(0.30436211612197733 * 3 / 4)


def test_alignment_and_uniformity_are_wang_and_isola():
    # ssnl/align_uniform align_uniform/__init__.py, commit 505907b9, unit norm by the caller: align_loss(u[:5], u[5:])
    # with alpha 2, uniform_loss(u) with t 2, over pairs of distinct rows
    assert alignment(Z[:5], Z[5:]) == near(0.4498482003514114)
    assert uniformity(Z) == near(-2.242415721995802)
    # lightly 1.6.0, HypersphereLoss(t=2, lam=1)(z[:5], z[5:]): alignment and the mean uniformity of the two views
    views = (uniformity(Z[:5]) + uniformity(Z[5:])) / 2
    assert alignment(Z[:5], Z[5:]) + views == near(-2.338571092838773)


def test_rankme_is_published():
    # Spidartist/IJEPA_endoscopy src/helper.py, commit 7d698fd7, calc_rankme(z) and of two rows: not centred, 1e-7 added
    assert rankme(Z) == near(3.9000753335021634)
    assert rankme(Z[:2]) == near(1.9619235662387027)
    # stable-pretraining 0.1.8, jax.callbacks.rankme.rankme(z): 1e-7 also added to the sum that divides (its torch
    # callback adds 1e-5 to p, and is another number)
    assert rankme(Z) == near(3.900075318552909)
