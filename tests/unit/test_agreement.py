"""Agreement of annotators against SimpleITK, scipy and brute force, on random and on degenerate masks."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK
from laws import refuses
from scipy import ndimage, stats
from scipy.spatial.distance import cdist

from medmtl.agreement.consensus import disagreement_map, entropy_map, majority, staple, staple_labels, votes
from medmtl.agreement.levels import LEVEL_COLUMNS, agreement_by
from medmtl.agreement.masks import Annotated, Mask, foreground
from medmtl.agreement.pairs import PAIR_COLUMNS, image_agreement, pair_scores, pair_table, problems
from medmtl.agreement.sets import generalised_energy_distance, jaccard_distances
from medmtl.io.raster import read_mask

PUBLISHED = Path("../shared/data/dermxdb-masks")
SHAPE = (18, 22)


def blob(seed, *, shape=SHAPE, level=0.55, margin=2):
    """A smooth random region that keeps ``margin`` pixels from the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    inner = np.zeros(shape, bool)
    inner[tuple(slice(margin, n - margin) for n in shape)] = True
    return (noise > level) & inner


def square(top, left, size=5):
    mask = np.zeros(SHAPE, bool)
    mask[top : top + size, left : left + size] = True
    return mask


EMPTY, FULL, PIXEL = np.zeros(SHAPE, bool), np.ones(SHAPE, bool), square(7, 9, 1)
MASKS = {
    "empty": EMPTY,
    "full": FULL,
    "pixel": PIXEL,
    "corner": square(0, 0, 1),
    "square": square(2, 2),
    "far": square(12, 15),
    "random": blob(0),
    "touching": blob(1, margin=0),
    "ring": square(3, 3, 9) & ~square(5, 5, 4),
}


def brute_force(a, b, spacing, tolerance):
    """(hd95, assd, nsd): every surface pixel to every other, surfaces as pixels with a missing face neighbour."""
    edges = [np.argwhere(m & ~ndimage.binary_erosion(m)) * np.array(spacing) for m in (a, b)]
    distances = cdist(*edges)
    there, back = distances.min(axis=1), distances.min(axis=0)
    both = np.concatenate([there, back])
    return (
        max(np.percentile(there, 95), np.percentile(back, 95)),
        both.mean(),
        np.mean(both <= tolerance + 1e-6),
    )


def labels(*masks):
    return np.stack(masks).astype(int)


# ------------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(("one", "other"), list(combinations(MASKS, 2)) + [(name, name) for name in MASKS])
def test_pairs_equal_brute_force_and_simpleitk(one, other):
    a, b = MASKS[one], MASKS[other]
    found = pair_scores(a, b, tolerance=1.5)
    assert found == pair_scores(b, a, tolerance=1.5)
    assert found.empty == (one == "empty") + (other == "empty")
    if found.empty == 2:
        assert (found.dice, found.jaccard, found.nsd, found.hd95, found.assd) == (1, 1, 1, 0, 0)
        return
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)))
    assert found.dice == pytest.approx(overlap.GetDiceCoefficient())
    assert found.jaccard == pytest.approx(overlap.GetJaccardCoefficient())
    if found.empty:
        assert (found.dice, found.nsd, found.hd95, found.assd) == (0, 0, None, None)
    else:
        assert (found.hd95, found.assd, found.nsd) == pytest.approx(brute_force(a, b, (1, 1), 1.5), abs=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.4, 2.5)])
@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_equal_simpleitk_distance_maps_in_mm(seed, spacing):
    a, b = blob(seed), blob(seed + 10)
    images = [SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    contours = [SimpleITK.LabelContour(image) for image in images]
    maps = [
        np.abs(SimpleITK.GetArrayFromImage(SimpleITK.SignedMaurerDistanceMap(c, squaredDistance=False,
                                                                           useImageSpacing=True)))
        for c in contours
    ]  # fmt: skip
    edges = [SimpleITK.GetArrayFromImage(c) > 0 for c in contours]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    both = np.concatenate([there, back])
    found = pair_scores(a, b, spacing=spacing, tolerance=1.0)
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-4)
    assert found.assd == pytest.approx(both.mean(), abs=1e-4)
    assert found.nsd == pytest.approx(np.mean(both <= 1 + 1e-6))


def test_a_volume_with_anisotropic_voxels():
    a, b = blob(3, shape=(7, 12, 11), level=0.45), blob(4, shape=(7, 12, 11), level=0.45)
    found = pair_scores(a, b, spacing=(3.0, 0.5, 0.7), tolerance=0.6)
    assert (found.hd95, found.assd, found.nsd) == pytest.approx(brute_force(a, b, (3, 0.5, 0.7), 0.6), abs=1e-5)


def test_the_tolerance_includes_its_own_distance():
    a, b = square(4, 4), square(4, 5)
    assert pair_scores(a, b, tolerance=1.0).nsd == 1.0
    assert pair_scores(a, b, tolerance=0.99).nsd == pytest.approx(brute_force(a, b, (1, 1), 0.99)[2])
    assert pair_scores(a, a, tolerance=0.0).nsd == 1.0


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("E-AGR-SPACING", {"spacing": (1.0,)}),
        ("E-AGR-SPACING", {"spacing": (1.0, 0.0)}),
        ("E-AGR-TOLERANCE", {"tolerance": -1.0}),
        ("E-AGR-TOLERANCE", {"tolerance": float("nan")}),
    ],
)
def test_impossible_settings_are_refused(code, settings):
    refuses(code, lambda: pair_scores(PIXEL, FULL, **settings))


def study():
    """Three annotators, none of whom saw every image; one image with a single mask, one that nobody marked."""
    marks = {
        "i1": {"ann": square(2, 2), "bo": square(2, 3), "cy": square(3, 3)},
        "i2": {"bo": square(6, 6), "cy": EMPTY},
        "i3": {"ann": square(1, 1)},
        "i4": {"ann": EMPTY, "cy": EMPTY},
        "i5": {"ann": square(2, 2), "bo": square(12, 12)},
    }
    traits = {"ann": {"tool": "T1"}, "bo": {"tool": "T2"}, "cy": {"tool": "T1"}}
    return [
        Annotated(image, tuple(Mask(name, mask, traits[name]) for name, mask in found.items()), group=image)
        for image, found in marks.items()
    ]


def test_the_table_has_a_row_for_each_pair_that_exists():
    table = pair_table(study())
    assert tuple(table.columns) == (*PAIR_COLUMNS, "tool.a", "tool.b")
    assert list(zip(table["image"], table["a"], table["b"], strict=True)) == [
        ("i1", "ann", "bo"), ("i1", "ann", "cy"), ("i1", "bo", "cy"), ("i2", "bo", "cy"), ("i4", "ann", "cy"),
        ("i5", "ann", "bo"),
    ]  # fmt: skip
    assert table["dice"].tolist() == pytest.approx([0.8, 0.64, 0.8, 0.0, 1.0, 0.0])
    assert table["empty"].tolist() == [0, 0, 0, 1, 2, 0]
    assert table["hd95"].isna().tolist() == [False, False, False, True, False, False]
    assert set(table["unit"]) == {"px"}
    nothing = pair_table([])
    assert tuple(nothing.columns) == PAIR_COLUMNS and len(nothing) == 0 and len(image_agreement(nothing)) == 0


def test_the_agreement_of_an_image_is_the_mean_over_its_pairs_which_are_its_weight():
    table = image_agreement(pair_table(study()))
    assert table["image"].tolist() == ["i1", "i2", "i4", "i5"]
    assert table["agreement"].tolist() == pytest.approx([(0.8 + 0.64 + 0.8) / 3, 0, 1, 0])
    assert table["pairs"].tolist() == [3, 1, 1, 1] and table["annotators"].tolist() == [3, 2, 2, 2]
    distances = image_agreement(pair_table(study()), measure="hd95").set_index("image")
    assert distances.loc["i2", "undefined"] == 1 and distances.loc["i2", "pairs"] == 0
    assert np.isnan(distances.loc["i2", "agreement"]) and distances.loc["i4", "agreement"] == 0
    refuses("E-AGR-MEASURE", lambda: image_agreement(pair_table(study()), measure="dize"))


def test_what_a_reader_must_know_is_a_row():
    found = problems(study())
    assert dict(zip(found["image"], found["code"], strict=True)) == {
        "i2": "W-AGR-MAJORITY", "i3": "W-AGR-ONE", "i4": "W-AGR-EMPTY", "i5": "W-AGR-MAJORITY",
    }  # fmt: skip
    assert found["remedy"].str.len().min() > 10
    assert problems(study()[:1]).empty
    alone = problems([Annotated("i6", (Mask("ann", EMPTY),))])
    assert alone["code"].tolist() == ["W-AGR-ONE", "W-AGR-EMPTY"]
    assert "agreement 1" not in " ".join(alone["what"])  # one mask agrees with nobody


# -------------------------------------------------------------------------------------------------------- bad input


def test_one_annotator_has_one_mask_per_image():
    twice = (Mask("ann", PIXEL), Mask("bo", FULL), Mask("ann", FULL))
    refuses("E-AGR-TWICE", lambda: Annotated("i1", twice), says="'ann' has 2 masks")
    refuses("E-AGR-NONE", lambda: Annotated("i1", ()), says="image i1")
    refuses("E-AGR-IMAGE", lambda: pair_table([study()[0], study()[0]]), says="i1")


def test_masks_are_of_the_size_of_their_image():
    small = Mask("bo", np.ones((4, 5), bool))
    refuses("E-AGR-SIZE", lambda: Annotated("i1", (Mask("ann", PIXEL), small)), says="'bo' is 4 x 5 px")
    refuses("E-AGR-SIZE", lambda: Annotated("i1", (Mask("ann", PIXEL),), size=(18, 23)), says="18 x 23")
    refuses("E-AGR-SIZE", lambda: pair_scores(PIXEL, np.ones((4, 5), bool)))


@pytest.mark.parametrize("full", [1, 255, 65535])
def test_two_valued_masks_are_read_whatever_their_full_value(full):
    pixels = square(3, 3).astype(np.uint16) * full
    np.testing.assert_array_equal(foreground(pixels, where="m"), square(3, 3))
    np.testing.assert_array_equal(foreground(EMPTY.astype(np.uint8), where="m"), EMPTY)
    np.testing.assert_array_equal(foreground(FULL.astype(np.uint16) * full, where="m"), FULL)


def test_anti_aliased_edges_are_cut_at_half_and_anything_else_is_refused():
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 12
    soft = np.round(ndimage.uniform_filter(disc.astype(float), 3) * 255).astype(np.uint8)
    assert len(np.unique(soft)) > 3
    np.testing.assert_array_equal(foreground(soft, where="m"), soft > 127)
    refuses("E-AGR-VALUES", lambda: foreground(soft, where="m", edge_px=0))
    grey = disc.astype(np.uint8) * 255
    for away, accepted in ((2, True), (3, True), (4, False), (5, False)):  # the last pixel of the disc is number 11
        stray = grey.copy()
        stray[20, 31 + away] = 90
        if accepted:
            np.testing.assert_array_equal(foreground(stray, where="m"), disc)
        else:
            refuses("E-AGR-VALUES", lambda pixels=stray: foreground(pixels, where="m"), says="1 pixels")
    haze = soft.copy()
    haze[:3, :3] = 40  # far from any edge: a probability or a lossy file, no anti-aliasing
    refuses("E-AGR-VALUES", lambda: foreground(haze, where="m"), says="9 pixels between 0 and 255")
    shaded = np.where(disc, np.uint8(255), np.uint8(0))
    shaded[20, 20] = 200  # a hole in the confidence, in the middle
    refuses("E-AGR-VALUES", lambda: foreground(shaded, where="m"), says="1 pixels")
    refuses("E-AGR-VALUES", lambda: foreground(disc.astype(np.uint8) * 128, where="m"), says="0, 128")
    refuses("E-AGR-VALUES", lambda: foreground(np.arange(9, dtype=np.uint8).reshape(3, 3), where="m"), says="9 values")


# -------------------------------------------------------------------------------------------------------- consensus


def staple_by_hand(D, iterations=100):
    """Warfield et al. 2004, eq. 14 to 20, with the mean mark as prior; starts at p = q = 0.99999 as ITK does."""
    R = len(D)
    flat, prior = D.reshape(R, -1), D.mean()
    p = q = np.full(R, 0.99999)
    for _ in range(iterations):
        a = np.log(np.where(flat == 1, p[:, None], 1 - p[:, None])).sum(0)
        b = np.log(np.where(flat == 1, 1 - q[:, None], q[:, None])).sum(0)
        W = prior * np.exp(a) / (prior * np.exp(a) + (1 - prior) * np.exp(b))
        p, q = (flat * W).sum(1) / W.sum(), ((1 - flat) * (1 - W)).sum(1) / (1 - W).sum()
        p, q = p.clip(1e-12, 1 - 1e-12), q.clip(1e-12, 1 - 1e-12)
    return W.reshape(D.shape[1:]), p, q


def noisy(truth, seed, *, sensitivity, specificity):
    draw = np.random.default_rng(seed).random(truth.shape)
    return np.where(truth, draw < sensitivity, draw > specificity)


def test_staple_equals_expectation_maximisation_by_hand():
    truth = blob(5, shape=(40, 40))
    D = labels(*(noisy(truth, i, sensitivity=s, specificity=t)
                 for i, (s, t) in enumerate([(0.95, 0.9), (0.7, 0.97), (0.8, 0.8), (0.9, 0.6)])))  # fmt: skip
    found = staple(D)
    W, p, q = staple_by_hand(D)
    assert found.how == "em"
    np.testing.assert_allclose(found.probability, W, atol=1e-3)
    np.testing.assert_allclose(found.sensitivity, p, atol=1e-3)
    np.testing.assert_allclose(found.specificity, q, atol=1e-3)


def test_staple_finds_the_careful_annotator_whom_the_majority_outvotes():
    truth = blob(5, shape=(40, 40))
    people = [(0.98, 0.99), (0.55, 0.97), (0.5, 0.96)]  # two of the three miss half of it
    D = labels(*(noisy(truth, i, sensitivity=s, specificity=t) for i, (s, t) in enumerate(people)))
    found = staple(D)
    np.testing.assert_allclose(found.sensitivity, [s for s, _ in people], atol=0.1)
    np.testing.assert_allclose(found.specificity, [t for _, t in people], atol=0.03)
    assert pair_scores(found.mask == 1, truth).dice > pair_scores(majority(D) == 1, truth).dice + 0.05


@pytest.mark.parametrize("names", list(product(MASKS, MASKS)) + [(name,) for name in MASKS])
def test_staple_is_a_number_for_any_masks(names):
    D = labels(*(MASKS[name] for name in names))
    found = staple(D)
    assert np.isfinite(found.probability).all() and 0 <= found.probability.min() <= found.probability.max() <= 1
    assert found.how == ("single" if len(names) == 1 else "unanimous" if names[0] == names[1] else "em")
    if found.how != "em":
        np.testing.assert_array_equal(found.mask, D[0])
        assert np.isnan(found.sensitivity).all()


def test_a_tie_of_staple_is_background():
    """Of two, one marks nothing, or everything: nothing tells whom to believe, the probability is one half."""
    for other, undecided, expected in ((EMPTY, MASKS["square"], EMPTY), (FULL, ~MASKS["square"], MASKS["square"])):
        found = staple(labels(other, MASKS["square"]))
        assert found.probability[undecided] == pytest.approx(0.5)
        np.testing.assert_array_equal(found.mask, expected)


def test_staple_of_several_classes_believes_the_better_annotators():
    truth = blob(6, shape=(40, 40)).astype(int) + blob(7, shape=(40, 40))
    rng = np.random.default_rng(0)
    D = np.stack([np.where(rng.random(truth.shape) < right, truth, rng.integers(0, 3, truth.shape))
                  for right in (0.97, 0.3, 0.3, 0.3)])  # fmt: skip
    found = staple_labels(D, classes=3)
    assert found.dtype == np.int64 and set(np.unique(found)) <= {0, 1, 2}
    assert (found == truth).mean() > (majority(D, classes=3) == truth).mean() + 0.03
    np.testing.assert_array_equal(staple_labels(D[:1], classes=3), D[0])
    np.testing.assert_array_equal(staple_labels(D[[0, 0]], classes=3), D[0])
    apart = labels(np.full(SHAPE, 1), np.full(SHAPE, 2))  # nothing speaks for either
    np.testing.assert_array_equal(staple_labels(apart, classes=3), majority(apart, classes=3))


@pytest.mark.parametrize("annotators", [1, 2, 3, 4, 7])
def test_a_majority_is_more_than_half_and_a_tie_is_background(annotators):
    D = labels(*(blob(seed, level=0.4) for seed in range(annotators)))
    np.testing.assert_array_equal(majority(D), 2 * D.sum(0) > annotators)
    voted = SimpleITK.LabelVoting([SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in D], 0)
    np.testing.assert_array_equal(majority(D), SimpleITK.GetArrayFromImage(voted))


def test_votes_majority_and_disagreement_of_several_classes_pixel_by_pixel():
    D = np.random.default_rng(1).integers(0, 3, (5, 4, 6))
    share, most, entropy, pairs = votes(D, classes=3), majority(D, classes=3), entropy_map(D, classes=3), \
        disagreement_map(D, classes=3)  # fmt: skip
    for at in np.ndindex(4, 6):
        said = D[(slice(None), *at)]
        counts = np.bincount(said, minlength=3)
        assert share[(slice(None), *at)].tolist() == pytest.approx(list(counts / 5))
        assert most[at] == counts.argmax()  # the first of the largest: the lowest class
        assert entropy[at] == pytest.approx(stats.entropy(counts, base=3), abs=1e-12)
        assert pairs[at] == pytest.approx(np.mean([x != y for x, y in combinations(said, 2)]))


def test_disagreement_of_two_classes_is_twice_the_unbiased_variance():
    D = labels(blob(0), blob(1), blob(2), FULL)
    np.testing.assert_allclose(disagreement_map(D), 2 * D.var(axis=0, ddof=1), atol=1e-12)
    assert entropy_map(labels(PIXEL, ~PIXEL)).min() == 1 and entropy_map(labels(PIXEL, PIXEL)).max() == 0
    refuses("E-AGR-ONE", lambda: disagreement_map(labels(PIXEL)))
    assert (majority(labels(EMPTY, EMPTY)) == 0).all() and (votes(labels(FULL))[1] == 1).all()


@pytest.mark.parametrize("function", [votes, majority, staple, staple_labels, entropy_map])
def test_labels_out_of_range_are_refused(function):
    refuses("E-AGR-VALUES", lambda: function(np.full((2, 3, 3), 2)), says="from 2 to 2, expected 0 to 1")
    refuses("E-AGR-VALUES", lambda: function(np.full((2, 3, 3), -1)))
    refuses("E-AGR-NONE", lambda: function(np.zeros((0, 3, 3), int)))


# -------------------------------------------------------------------------------------------------------------- sets


def iou_distance(a, b):
    return 0.0 if not (a | b).any() else 1 - (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(("M", "N"), [(1, 1), (1, 4), (3, 2), (4, 4)])
def test_the_energy_distance_equals_loops(M, N):
    pool = [*MASKS.values()]
    rng = np.random.default_rng(M * 10 + N)
    S, Y = ([pool[i] for i in rng.integers(0, len(pool), count)] for count in (M, N))
    d = iou_distance

    def mean(A, B):
        return np.mean([d(a, b) for a in A for b in B])

    expected = 2 * mean(S, Y) - mean(S, S) - mean(Y, Y)
    assert generalised_energy_distance(labels(*S), labels(*Y)) == pytest.approx(expected, abs=1e-6)
    assert expected >= -1e-12
    if min(M, N) >= 2:
        within = [np.mean([d(a, b) for a, b in combinations(A, 2)]) for A in (S, Y)]
        found = generalised_energy_distance(labels(*S), labels(*Y), unbiased=True)
        assert found == pytest.approx(2 * mean(S, Y) - sum(within), abs=1e-6)


def test_the_energy_distance_is_zero_for_the_annotators_own_masks_and_one_for_none():
    Y = labels(blob(0), blob(1), blob(2))
    assert generalised_energy_distance(Y, Y[[2, 0, 1]]) == pytest.approx(0, abs=1e-7)
    assert generalised_energy_distance(labels(PIXEL), labels(EMPTY)) == 2
    assert generalised_energy_distance(labels(EMPTY), labels(EMPTY)) == 0
    refuses("E-AGR-ONE", lambda: generalised_energy_distance(Y, Y[:1], unbiased=True))
    refuses("E-AGR-NONE", lambda: generalised_energy_distance(Y[:0], Y))
    refuses("E-AGR-SIZE", lambda: generalised_energy_distance(Y, np.zeros((1, 3, 3), int)))


def test_the_distance_of_several_classes_is_the_mean_over_the_foreground():
    A = labels(blob(0)).astype(int) + labels(blob(1))
    B = labels(blob(2)).astype(int) + labels(blob(3))
    expected = np.mean([iou_distance(A[0] == k, B[0] == k) for k in (1, 2)])
    assert jaccard_distances(A, B, classes=3)[0, 0] == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ levels


def cohort(images=24, copies=1):
    """Two careful annotators and a careless one over ``images`` patients, each with ``copies`` equal images."""
    found = []
    for i in range(images):
        truth = blob(100 + i, level=0.5)
        people = {"ann": ("T1", 0.02), "bo": ("T1", 0.03), "cy": ("T2", 0.3)}
        masks = tuple(
            Mask(name, truth ^ (np.random.default_rng(1000 * i + k).random(SHAPE) < noise), {"tool": tool})
            for k, (name, (tool, noise)) in enumerate(people.items())
            if (i + k) % 4
        )
        found += [Annotated(f"i{i:02d}.{c}", masks, group=f"p{i:02d}") for c in range(copies)]
    return found


def test_agreement_by_annotator_and_by_tool_are_means_over_their_pairs():
    table = pair_table(cohort())
    people = agreement_by(table, "annotator", resamples=200).set_index("level")
    assert people.index.tolist() == ["ann", "bo", "cy"]
    for name in people.index:
        of_them = table[(table["a"] == name) | (table["b"] == name)]
        assert people.loc[name, "value"] == pytest.approx(of_them["dice"].mean())
        assert people.loc[name, "pairs"] == len(of_them)
        assert people.loc[name, "low"] < people.loc[name, "value"] < people.loc[name, "high"]
    tools = agreement_by(table, "tool", resamples=200).set_index("level")
    assert tools.index.tolist() == ["T1 - T1", "T1 - T2"]
    assert tools.loc["T1 - T1", "low"] > tools.loc["T1 - T2", "high"]
    everything = agreement_by(table, resamples=200)
    assert tuple(everything.columns) == LEVEL_COLUMNS
    assert everything.loc[0, "value"] == pytest.approx(table["dice"].mean())
    refuses("E-AGR-TRAIT", lambda: agreement_by(table, "skill"), says="tool")
    refuses("E-AGR-TRAIT", lambda: agreement_by(table, "dice"), says="tool")
    sites = agreement_by(table.assign(site=table["group"].str[-1]), "site", resamples=200)
    assert sites["value"].tolist() == pytest.approx(table.groupby(table["group"].str[-1])["dice"].mean().tolist())


@pytest.mark.parametrize("measure", ["dice", "assd"])
def test_images_of_one_patient_do_not_narrow_an_interval(measure):
    """Every image four times within its patient: the same interval, not one of half the width."""
    once, often = (agreement_by(pair_table(cohort(copies=n)), measure=measure, resamples=300) for n in (1, 4))
    columns = ["value", "low", "high"]
    np.testing.assert_allclose(once[columns], often[columns], rtol=1e-9)
    assert often.loc[0, "pairs"] == 4 * once.loc[0, "pairs"] and once.loc[0, "groups"] == often.loc[0, "groups"]


def test_few_patients_have_no_interval_and_mixed_units_no_mean():
    few = agreement_by(pair_table(study()))
    assert np.isnan(few.loc[0, "low"]) and few.loc[0, "reason"] == "fewer than 5 groups: interval omitted"
    assert few.loc[0, "pairs"] == 6
    some = agreement_by(pair_table(study()), measure="hd95")
    assert (some.loc[0, "pairs"], some.loc[0, "undefined"]) == (5, 1)
    none = agreement_by(pair_table(study()[1:2]), measure="hd95")
    assert np.isnan(none.loc[0, "value"]) and none.loc[0, "reason"] == "no pair with a value"
    masks = study()[0].masks
    mixed = pair_table([Annotated("a", masks), Annotated("b", masks, spacing_mm=(0.1, 0.1))])
    assert mixed["unit"].tolist() == ["px"] * 3 + ["mm"] * 3
    refuses("E-AGR-UNIT", lambda: agreement_by(mixed, measure="assd"))
    assert agreement_by(mixed).loc[0, "value"] == pytest.approx(mixed["dice"].mean())


# --------------------------------------------------------------------------------------------------- published numbers


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the data set dermxdb-masks is not there")
def test_dice_equals_the_published_pairs_of_eight_dermatologists():
    """DermXDB publishes Dice with four decimals for 2,902 pairs: no difference beyond their rounding."""
    masks, published = (pd.read_csv(PUBLISHED / name) for name in ("masks.csv", "pairwise_dice.csv"))
    keys = ["image_id", "characteristic"]
    chosen = sorted(set(map(tuple, masks[keys].to_numpy())))[::5]  # a fifth of the sets: two seconds
    found = pair_table(
        Annotated("|".join(key), tuple(
            Mask(row["labeller"], foreground(read_mask(PUBLISHED / row["mask"]), where=row["mask"]))
            for _, row in masks[(masks[keys] == key).all(axis=1)].iterrows()
        ), group=key[0])
        for key in chosen
    )  # fmt: skip
    names = published[["labeller1", "labeller2"]].to_numpy(str)
    names.sort(axis=1)
    theirs = published.assign(image=published["image_id"] + "|" + published["characteristic"], a=names[:, 0],
                              b=names[:, 1])  # fmt: skip
    theirs = theirs[theirs["image"].isin(found["image"])]
    both = found.merge(theirs, on=["image", "a", "b"], how="outer", suffixes=("", "_published"), validate="1:1")
    assert len(both) == len(found) == len(theirs) > 500
    assert (both["dice"] - both["dice_published"]).abs().max() <= 0.5e-4 + 1e-9
