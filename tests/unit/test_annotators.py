"""Segmentation from annotators who disagree: its laws, its matrices against the truth, its way through the program."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from laws import (
    TinyEncoder,
    batch,
    chance,
    costs_about_one_at_chance,
    decodes_within_range,
    falls_towards_the_truth,
    gradients,
    is_per_sample,
    objective,
    refuses,
    table,
    targets_of,
    truth,
)
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from medmtl import losses
from medmtl.agreement.consensus import majority, staple_labels
from medmtl.agreement.masks import Annotated, Mask
from medmtl.agreement.pairs import image_agreement, pair_scores, pair_table
from medmtl.agreement.sets import generalised_energy_distance
from medmtl.bundle import load_bundle
from medmtl.config import validate
from medmtl.data.augment import Augment
from medmtl.data.case import Case, read_manifest, write_manifest
from medmtl.data.loader import CaseDataset, labels
from medmtl.data.preprocess import Preprocess
from medmtl.data.sampler import Draw
from medmtl.data.target import ABSENT, AnnotatorsTarget
from medmtl.experiment import train
from medmtl.inference.pipeline import Job, predict
from medmtl.io.raster import read_mask, write_png
from medmtl.prepared import label_counts, prepare
from medmtl.results import evaluate_run
from medmtl.study import Study
from medmtl.tasks.annotators import Annotators
from medmtl.tasks.base import summary

NAMES = ("ann", "bo", "cy")
TWO, THREE = ("background", "lesion"), ("background", "liver", "spleen")
TASKS = {
    "confusion": Annotators(classes=TWO, annotators=NAMES),
    "organs": Annotators(classes=THREE, annotators=NAMES, reference="staple"),
    "each": Annotators(classes=TWO, annotators=NAMES, training="each"),
    "soft": Annotators(classes=THREE, annotators=NAMES, training="soft", class_weights=(0.5, 1.0, 1.5)),
    "majority": Annotators(classes=TWO, annotators=NAMES, training="majority"),
    "staple": Annotators(classes=TWO, annotators=NAMES, training="staple"),
}
everyone = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def noisy_targets(task, samples=6, seed=3):
    """As in the laws, but every annotator errs in his own way."""
    target = targets_of(task, samples, seed)
    source = torch.Generator().manual_seed(seed)
    other = torch.randint(len(task.classes), target.shape, generator=source)
    return torch.where((torch.rand(target.shape, generator=source) < 0.3) & (target >= 0), other, target)


def any_output(task, target, seed=5):
    """Random logits, and random matrices that are the same at every pixel."""
    output = torch.randn(chance(task, target).shape, generator=torch.Generator().manual_seed(seed))
    K = len(task.classes)
    output[:, K:] = output[:, K:, :1, :1]
    return output


# -------------------------------------------------------------------------------------------------------------- laws


@everyone
def test_chance_costs_about_one(task):
    unweighted = task.model_copy(update={"class_weights": None})
    low, high = (1.0, 1.0 + task.trace) if task.training == "confusion" else (0.65, 1.05)
    costs_about_one_at_chance(unweighted, targets_of(task, 6), low, high)
    costs_about_one_at_chance(unweighted, noisy_targets(task), low, high)


@everyone
def test_the_loss_falls_towards_the_truth(task):
    falls_towards_the_truth(task, targets_of(task, 6))


@everyone
def test_the_loss_is_per_sample(task):
    is_per_sample(task, noisy_targets(task))


@everyone
def test_decoding_gives_one_map_of_the_consensus(task):
    decodes_within_range(task, targets_of(task, 6))


@everyone
def test_a_new_head_starts_at_the_constant_predictor_and_costs_at_most_one(task):
    target = targets_of(task, 6)
    fitted = task.fit([plane.numpy() for sample in target for plane in sample if plane[0, 0] != ABSENT])
    head = fitted.head(TinyEncoder())
    (head.decoder if task.training == "confusion" else head).predict.weight.data.zero_()
    output = head([torch.zeros(6, 4, 4, 4), torch.zeros(6, 8, 2, 2)])
    assert 0.3 < fitted.loss(output, target).mean().item() <= 1.1
    shares = fitted.decode(output).mean((0, 2, 3))
    torch.testing.assert_close(shares, torch.tensor(fitted.prior), atol=1e-3, rtol=1e-3)


@everyone
def test_an_unlabelled_sample_leaves_no_trace(task):
    """Another placeholder: the same loss and gradients, bit by bit; another label: not."""
    tasks = {"lesion": task}
    partial = batch(tasks, samples=6, lesion=[0, 2, 3])
    missing = ~partial.labelled["lesion"][:, None, None, None]
    other = torch.where(missing, noisy_targets(task, seed=77), partial.targets["lesion"])
    assert not torch.equal(other, partial.targets["lesion"])
    first = gradients(objective(tasks), partial)
    second = gradients(objective(tasks), replace(partial, targets={"lesion": other}))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    relabelled = replace(partial, targets={"lesion": noisy_targets(task, seed=78)})
    assert not torch.equal(gradients(objective(tasks), relabelled)[0], first[0])


@everyone
def test_two_ranks_are_one(task, monkeypatch):
    """The mean of the ranks' gradients, as DistributedDataParallel takes it, is that of the whole batch."""
    tasks = {"lesion": task}
    whole = batch(tasks, samples=6, lesion=[0, 1, 2, 5])
    whole = replace(whole, targets={"lesion": noisy_targets(task)})
    _, expected = gradients(objective(tasks), whole)
    count = whole.labelled["lesion"].sum()
    monkeypatch.setattr("medmtl.engine.objective.dist.total", lambda _: count[None])
    monkeypatch.setattr("medmtl.engine.objective.dist.world", lambda: 2)
    parts = []
    for rank in (0, 1):
        part = replace(
            whole,
            image=whole.image[rank::2],
            targets={"lesion": whole.targets["lesion"][rank::2]},
            labelled={"lesion": whole.labelled["lesion"][rank::2]},
        )
        parts.append(gradients(objective(tasks), part)[1])
    for name, gradient in expected.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, gradient, atol=1e-6, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", ["confusion", "organs"])
def test_the_loss_is_the_likelihood_of_what_each_annotator_says(name):
    """Tanno et al. 2019 in loops: -log sum_j p_j A_r[j, y] over pixels and annotators, plus the trace."""
    task, K = TASKS[name], len(TASKS[name].classes)
    target = noisy_targets(task)
    output = any_output(task, target).double()
    found = task.loss(output, target)
    for i in range(len(target)):
        p = output[i, :K].softmax(0)
        costs = []
        for r in range(len(NAMES)):
            A = output[i, K + r * K * K : K + (r + 1) * K * K, 0, 0].view(K, K).softmax(1)
            y = target[i, r]
            if y[0, 0] == ABSENT:
                continue
            likelihood = torch.stack([(p[:, u, v] * A[:, y[u, v]]).sum() for u, v in np.ndindex(*y.shape)])
            costs.append(-likelihood.log().mean() / np.log(K) + task.trace * A.trace() / K)
        torch.testing.assert_close(found[i], torch.stack(costs).mean())


def test_training_on_a_consensus_is_segmentation_of_it():
    logits = {name: any_output(task, noisy_targets(task)) for name, task in TASKS.items()}
    for name, consensus in (("majority", majority), ("staple", staple_labels)):
        task, target = TASKS[name], noisy_targets(TASKS[name])
        drawn = [sample[: len(NAMES)][sample[: len(NAMES), 0, 0] != ABSENT].numpy() for sample in target]
        label = torch.tensor(np.stack([consensus(masks) for masks in drawn]))
        if name == "staple":
            target[:, -1] = label
        torch.testing.assert_close(task.loss(logits[name], target), losses.dice_cross_entropy(logits[name], label))
    task, target = TASKS["each"], noisy_targets(TASKS["each"])
    found = task.loss(logits["each"], target)
    for i, sample in enumerate(target):
        masks = sample[sample[:, 0, 0] != ABSENT]
        single = losses.dice_cross_entropy(logits["each"][i].expand(len(masks), -1, -1, -1), masks)
        torch.testing.assert_close(found[i], single.mean())


def test_soft_labels_that_are_sharp_are_labels():
    task = TASKS["soft"]
    target = targets_of(task, 6)  # all agree
    logits, weights = any_output(task, target), torch.tensor(task.class_weights)
    expected = losses.dice_cross_entropy(logits, target.amax(1), class_weights=weights)
    torch.testing.assert_close(task.loss(logits, target), expected)


@everyone
def test_an_absent_annotator_contributes_an_exact_zero(task):
    """The loss is that of a task that has never heard of him, and his matrix gets no gradient, not even a tiny one."""
    target = noisy_targets(task)
    target[:, 1] = ABSENT
    output = any_output(task, target).requires_grad_()
    task.loss(output, target).sum().backward()
    others = task.model_copy(update={"annotators": (NAMES[0], NAMES[2])})
    K = len(task.classes)
    channels, planes = list(range(output.shape[1])), list(range(target.shape[1]))
    if task.training == "confusion":
        del channels[K + K * K : K + 2 * K * K]
        assert (output.grad[:, K + K * K : K + 2 * K * K] == 0).all()
        assert (output.grad[:, K : K + K * K, 0, 0] != 0).any()
    del planes[1]
    without = others.loss(output[:, channels], target[:, planes])
    torch.testing.assert_close(task.loss(output, target), without, rtol=0, atol=0)


@everyone
def test_the_order_of_the_annotators_means_nothing(task):
    target = noisy_targets(task)
    output, K, order = any_output(task, target), len(task.classes), [2, 0, 1]
    planes = [*order, *range(len(NAMES), target.shape[1])]
    channels = [*range(K), *(K + r * K * K + i for r in order for i in range(K * K))][: output.shape[1]]
    torch.testing.assert_close(task.loss(output[:, channels], target[:, planes]), task.loss(output, target))


def test_a_lower_trace_is_preferred_where_the_data_do_not_decide():
    """At uniform p the likelihood of balanced matrices is the same; the regularisation tells them apart."""
    task = TASKS["confusion"]
    target = targets_of(task, 4)
    sharp, blurred = (torch.zeros(4, 14, 8, 8) for _ in range(2))
    sharp[:, 2:] = 4 * torch.eye(2).flatten().repeat(3)[:, None, None]
    difference = task.loss(sharp, target) - task.loss(blurred, target)
    expected = task.trace * (torch.eye(2) * 4).softmax(1).trace() / 2 - task.trace * 0.5
    torch.testing.assert_close(difference, expected.expand(4))


def test_weight_decay_spares_the_matrices():
    head = TASKS["confusion"].head(TinyEncoder())
    assert head.confusion.ndim == 1  # what the optimiser takes for a bias
    A = head.matrices()
    torch.testing.assert_close(A.sum(-1), torch.ones(3, 2))
    torch.testing.assert_close(A[1], torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


# --------------------------------------------------------------------------------------------------- rows and metrics


@everyone
def test_rows_and_metrics_agree_that_the_truth_is_perfect(task):
    target = targets_of(task, 8)
    found = summary(task, table(task, truth(task, target), target))
    assert set(task.headline) <= set(found)
    for label in task.classes[1:]:
        assert (found[f"dice.{label}"], found[f"hd95.{label}"]) == (1, 0)
    assert (found["agreement"], found["human_agreement"], found["agreement_iou.bo"]) == (1, 1, 1)
    assert found["agreement_hd95.cy"] == 0 and found["ged"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["confusion", "organs", "staple"])
def test_a_row_compares_with_the_consensus_and_with_each_annotator(name):
    task = TASKS[name]
    K = len(task.classes)
    target = noisy_targets(task)
    decoded = task.decode(any_output(task, target))
    for i in range(len(target)):
        row = task.row(decoded[i], target[i])
        people = {who: target[i, r].numpy() for r, who in enumerate(NAMES) if target[i, r, 0, 0] != ABSENT}
        drawn, predicted = np.stack(list(people.values())), decoded[i].argmax(0).numpy()
        reference = target[i, -1].numpy() if task.reference == "staple" else majority(drawn, classes=K)

        def dice(a, b):
            return np.mean([pair_scores(a == k, b == k).dice for k in range(1, K)])

        assert np.mean([row[f"dice.{label}"] for label in task.classes[1:]]) == pytest.approx(
            dice(predicted, reference)
        )
        assert row["target"] == pytest.approx((reference > 0).mean())
        for who in NAMES:
            if who in people:
                assert row[f"agreement.{who}"] == pytest.approx(dice(predicted, people[who]))
                far = [pair_scores(predicted == k, people[who] == k).hd95 for k in range(1, K)]
                assert row[f"agreement_hd95.{who}"] == pytest.approx(np.mean(far))
            else:
                assert np.isnan(row[f"agreement.{who}"])
        assert row["agreement"] == pytest.approx(np.mean([dice(predicted, mask) for mask in drawn]))
        if K == 2:
            masks = tuple(Mask(who, mask == 1) for who, mask in people.items())
            pairs = image_agreement(pair_table([Annotated("i", masks)]))
            assert row["human_agreement"] == pytest.approx(pairs["agreement"][0])
            nested = np.stack([decoded[i, 1].numpy() >= level for level in task.levels])
            assert row["ged"] == pytest.approx(generalised_energy_distance(nested, drawn))


def test_one_annotator_agrees_with_nobody_and_an_empty_consensus_is_scored():
    task = TASKS["confusion"]
    target = torch.full((3, 8, 8), ABSENT)
    target[1] = 0
    nothing = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    row = task.row(nothing, target)
    assert (row["dice.lesion"], row["hd95.lesion"], row["ged"], row["agreement"]) == (1, 0, 0, 1)
    assert np.isnan(row["human_agreement"]) and np.isnan(row["agreement.ann"])
    found = summary(task, pd.DataFrame([row]))
    assert np.isnan(found["human_agreement"]) and found["agreement.bo"] == 1


@everyone
def test_a_missing_label_leaves_the_prediction_and_no_target(task):
    target = targets_of(task, 3)
    decoded = task.decode(chance(task, target))
    assert set(task.row(decoded[0], None)) == {"prediction"}
    unlabelled = table(task, chance(task, target), target)[["case_id", "task", "prediction"]].assign(target=np.nan)
    assert all(np.isnan(value) for value in summary(task, unlabelled).values())


def test_the_constant_control_does_not_borrow_the_model_s_agreement():
    task = TASKS["confusion"]
    target = targets_of(task, 8)
    control = summary(task, task.constant(table(task, truth(task, target), target)))
    assert control["dice.lesion"] == 0
    assert all(np.isnan(control[name]) for name in ("ged", "agreement", "agreement.bo", "agreement_hd95.cy"))
    assert control["human_agreement"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"annotators": ("ann", "ann")},
        {"levels": (0.5, 1.0)},
        {"levels": ()},
        {"class_weights": (1.0, 2.0)},
        {"diagonal": 0.5},
        {"training": "vote"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        Annotators(classes=TWO, **settings)


# --------------------------------------------------------------------------------------------- annotators of known bias

BIAS = {  # what each says, given the truth: background, lesion
    "over": [[0.75, 0.25], [0.02, 0.98]],
    "under": [[0.99, 0.01], [0.6, 0.4]],
    "random": [[0.85, 0.15], [0.2, 0.8]],
}


class OneScale(nn.Module):
    """Two wide convolutions at full resolution."""

    channels, strides = (12,), ((1, 1),)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 5, 1, 2), nn.GroupNorm(2, 12), nn.SiLU(),
                                    nn.Conv2d(12, 12, 5, 1, 2), nn.GroupNorm(2, 12), nn.SiLU())  # fmt: skip

    def forward(self, image):
        return [self.layers(image)]


def discs(count, seed, size=24):
    """Bright discs in noise: images [N, 3, H, W] and the truth [N, H, W]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(8, size - 8, (2, count, 1, 1)), rng.uniform(4, 7, (count, 1, 1))
    label = np.hypot(y - centre[0], x - centre[1]) < radius
    image = 0.6 * label + rng.normal(0.2, 0.15, label.shape)
    return torch.tensor(image[:, None].repeat(3, 1)).float(), label.astype(int)


def annotate(label, seed):
    """[N, 3, H, W]: two of the three annotators, drawn for each image, err at random pixels as their matrix says."""
    rng = np.random.default_rng(seed)
    drawn = np.full((len(label), 3, *label.shape[1:]), ABSENT)
    for image, planes in zip(label, drawn, strict=True):
        for r in rng.choice(3, 2, replace=False):
            planes[r] = rng.random(image.shape) < np.array(BIAS[list(BIAS)[r]])[image, 1]
    return torch.tensor(drawn)


def learned(training, steps=70):
    """(the matrices or None, mean Dice on unseen images with the hidden truth) of a small network."""
    torch.manual_seed(0)
    (images, label), (unseen, hidden) = discs(64, 0), discs(40, 1)
    drawn = annotate(label, 2)
    task = Annotators(classes=TWO, annotators=tuple(BIAS), training=training)
    task = task.fit([plane.numpy() for sample in drawn for plane in sample if plane[0, 0] != ABSENT])
    encoder = OneScale()
    head = task.head(encoder)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=5e-3)
    for step in range(steps):
        chosen = torch.arange(16 * step, 16 * step + 16) % len(images)
        optimiser.zero_grad()
        task.loss(head(encoder(images[chosen])), drawn[chosen]).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    with torch.no_grad():
        predicted = task.decode(head(encoder(unseen))).argmax(1).numpy()
    return task.confusions(head), np.mean(
        [pair_scores(a == 1, b == 1).dice for a, b in zip(predicted, hidden, strict=True)]
    )


@pytest.fixture(scope="module")
def estimate():
    return learned("confusion")


def test_the_matrices_approach_the_truth(estimate):
    """An over-segmenter, an under-segmenter and a careless annotator, two of whom see each image."""
    table, _ = estimate
    assert list(table.columns) == ["annotator", "truth", "said", "probability"] and len(table) == 12
    expected = np.array(list(BIAS.values())).ravel()
    start = np.tile([0.9, 0.1, 0.1, 0.9], 3)
    error = np.abs(table["probability"].to_numpy() - expected)
    assert error.max() < 0.05 and np.abs(start - expected).max() > 0.45


def test_the_consensus_is_nearer_to_the_hidden_truth_than_that_of_a_network_trained_on_the_majority(estimate):
    """With two masks per image the majority is where both agree: it misses what the under-segmenter misses."""
    _, dice = estimate
    _, on_majority = learned("majority")
    assert dice > 0.97 and dice > on_majority + 0.02


def test_the_matrices_can_be_read_as_sentences():
    task = TASKS["confusion"]
    sentences = task.skills(task.head(TinyEncoder()))
    assert (
        sentences[0] == "ann recognises background on 90%, lesion on 90% of its pixels, as learned with the consensus"
    )
    assert len(sentences) == 3 and TASKS["each"].skills(TASKS["each"].head(TinyEncoder())) == []
    assert TASKS["each"].confusions(TASKS["each"].head(TinyEncoder())).empty


# ------------------------------------------------------------------------------------------------- files and the study


def case(row, *people, group=None, split=""):
    targets = {f"lesion.{who}": f"masks/c{row}-{who}.png" for who in people}
    return Case(f"c{row:02d}", group or f"g{row:02d}", f"images/c{row}.png", "d", split, targets, {}, row + 2)


def write_study(root, cases, size=(24, 20)):
    """Images whose bright disc is the lesion, and masks that err at the border; returns the manifest."""
    rng = np.random.default_rng(0)
    for row, item in enumerate(cases):
        y, x = np.mgrid[: size[0], : size[1]]
        distance = np.hypot(y - rng.uniform(8, 16), x - rng.uniform(8, 12))
        grey = np.where(distance < 6, 200, 60) + rng.integers(0, 40, size)
        write_png(root / item.image, np.repeat(grey[..., None], 3, 2).astype(np.uint8))
        for k, path in enumerate(item.targets.values()):
            write_png(root / path, distance < 5 + k + row % 2)
    return read_manifest(write_manifest(root / "manifest.csv", cases))


def dataset(manifest, target, **more):
    more = {"preprocess": Preprocess(), **more}
    return CaseDataset(manifest.cases, manifest.root, {"lesion": target}, ("d",), **more)


def test_masks_become_planes_and_who_did_not_annotate_is_absent(tmp_path):
    manifest = write_study(tmp_path, [case(0, "ann", "cy"), case(1, "bo"), case(2)])
    target = AnnotatorsTarget(TWO, NAMES, staple=True)
    samples = [dataset(manifest, target)[i] for i in range(3)]
    assert [sample.labelled["lesion"] for sample in samples] == [True, True, False]
    planes = samples[0].targets["lesion"]
    assert planes.shape == (4, 24, 20) and planes.dtype == torch.int64
    for k, who in ((0, "ann"), (2, "cy")):
        np.testing.assert_array_equal(planes[k], read_mask(tmp_path / f"masks/c0-{who}.png"))
    assert (planes[1] == ABSENT).all()
    np.testing.assert_array_equal(planes[3], staple_labels(planes[[0, 2]].numpy()))
    np.testing.assert_array_equal(samples[1].targets["lesion"][3], samples[1].targets["lesion"][1])
    assert (samples[2].targets["lesion"][[0, 3]] == 0).all() and (samples[2].targets["lesion"][1:3] == ABSENT).all()
    assert len(labels(manifest.cases, "lesion", target, tmp_path)) == 3  # one for each mask, none for STAPLE's
    cached = dataset(manifest, target)
    first = cached[0].targets["lesion"]
    assert torch.equal(cached[0].targets["lesion"], first) and torch.equal(first, planes)


def test_every_mask_moves_with_its_image_and_padding_does_not_annotate(tmp_path):
    root = tmp_path
    manifest = write_study(root, [case(0, "ann", "cy")])
    bright = read_mask(root / "masks/c0-ann.png")
    write_png(root / "images/c0.png", np.repeat(255 * bright[..., None], 3, 2).astype(np.uint8))
    write_png(root / "masks/c0-cy.png", 1 - bright)
    augment = validate(Augment, {"geometry": {"flip": True, "rotate90": True, "jitter_px": 2}}, where="test")
    data = dataset(manifest, AnnotatorsTarget(TWO, NAMES), augment=augment, preprocess=Preprocess(window=(16, 16)))
    seen = set()
    for position in range(12):
        sample = data[Draw(0, position, 0)]
        planes = sample.targets["lesion"]
        assert torch.equal(planes[0].bool(), sample.image[0] > 0.5)
        assert torch.equal(planes[2], 1 - planes[0]) and (planes[1] == ABSENT).all()
        seen.add(planes[0].numpy().tobytes())
    assert len(seen) > 6
    padded = dataset(manifest, AnnotatorsTarget(TWO, NAMES), preprocess=Preprocess(window=(32, 32), pad=True))[0]
    assert (padded.targets["lesion"][1] == ABSENT).all() and (padded.targets["lesion"][0, 0] == 0).all()


def test_masks_that_do_not_fit_are_named(tmp_path):
    target = AnnotatorsTarget(TWO, NAMES)
    manifest = write_study(tmp_path, [case(0, "ann", "cy"), case(1, "bo")])
    write_png(tmp_path / "masks/c1-bo.png", np.zeros((5, 6), bool))
    refuses("E-TGT-SIZE", lambda: dataset(manifest, target)[1], says="case c01 (manifest row 3)")
    refuses("E-TGT-SIZE", lambda: dataset(manifest, target)[1], says="mask target.lesion.bo is (5, 6)")
    write_png(tmp_path / "masks/c0-cy.png", np.zeros((5, 6), bool))
    refuses("E-TGT-SIZE", lambda: dataset(manifest, target)[0], says="ann (24, 20), cy (5, 6)")
    write_png(tmp_path / "masks/c0-cy.png", np.full((24, 20), 255, np.uint8))
    refuses("E-TGT-MASK", lambda: dataset(manifest, target)[0], says="255")


STUDY = {
    "name": "skin",
    "data": {"split": {"kind": "column"}},
    "preprocess": {"window": [16, 16]},
    "augment": {"geometry": {"flip": True, "jitter_px": 2}},
    "encoder": {"kind": "timm", "name": "test_resnet", "norm": "group"},
    "tasks": {"lesion": {"kind": "annotators", "classes": list(TWO), "decoder": {"width": 8}}},
    "loader": {"batch_size": 4, "workers": 0},
    "optim": {"epochs": 1},
    "evaluation": {"resamples": 100, "gallery": 2},
    "tracking": {"enabled": False},
}


def study(root, **task):
    tree = {**STUDY, "data": {**STUDY["data"], "manifest": str(root / "manifest.csv")}}
    tree["tasks"] = {"lesion": {**STUDY["tasks"]["lesion"], **task}}
    return validate(Study, tree, where="test")


def people_of(row):
    """Any subset, also none, of three annotators."""
    return [who for k, who in enumerate(NAMES) if (row + k) % 4]


def cases():
    parts = ["train"] * 8 + ["val"] * 6 + ["test"] * 6
    return [case(i, *(people_of(i) if i % 5 else []), split=part) for i, part in enumerate(parts)]


def test_the_columns_of_the_manifest_name_the_annotators(tmp_path):
    write_study(tmp_path, cases())
    prepared = prepare(study(tmp_path))
    task = prepared.spec.tasks["lesion"]
    assert task.annotators == NAMES and prepared.study.tasks["lesion"].annotators == ()
    assert task.columns("lesion") == ("lesion.ann", "lesion.bo", "lesion.cy")
    assert label_counts(prepared)["lesion"] == {"train": 6, "val": 5, "test": 5}
    assert 0.05 < task.prior[1] < 0.5
    chosen = prepare(study(tmp_path, annotators=["cy", "ann"])).spec.tasks["lesion"]
    assert chosen.annotators == ("cy", "ann")
    refuses("E-CFG-TARGET", lambda: prepare(study(tmp_path, annotators=["ann", "dee"])), says="target.lesion.dee")
    refuses("E-CFG-TARGET", lambda: prepare(study(tmp_path, target="nevus")), says="target.nevus.<annotator>")


def test_confusion_is_not_learned_from_one_annotator(tmp_path):
    write_study(tmp_path, [case(i, "ann", split=part) for i, part in enumerate(["train", "train", "val", "test"])])
    refuses("E-CFG-ANNOTATORS", lambda: prepare(study(tmp_path)), says="1 annotator(s) (ann)")
    assert prepare(study(tmp_path, training="each")).spec.tasks["lesion"].annotators == ("ann",)


def test_from_files_to_a_report_and_drawings(tmp_path):
    write_study(tmp_path, cases())
    run = train(study(tmp_path, reference="staple"), runs=tmp_path / "runs", say=lambda line: None)
    bundle = load_bundle(run.bundle)
    task, head = bundle.spec.tasks["lesion"], bundle.model.heads["lesion"]
    assert task.annotators == NAMES and len(task.confusions(head)) == 12
    A = head.matrices()
    assert torch.equal(load_bundle(run.bundle).model.heads["lesion"].matrices(), A)
    assert not torch.allclose(A.diagonal(0, 1, 2), torch.tensor(0.9), atol=1e-3)  # something was learned
    evaluation = evaluate_run(run, say=lambda line: None)
    entry = evaluation.result["tasks"]["lesion"]
    assert entry["kind"] == "annotators" and entry["n"] == 5 and entry["n_missing"] == 1
    assert entry["overall"]["ged"]["value"] >= 0
    assert entry["overall"]["agreement.bo"]["n"] == sum("lesion.bo" in c.targets for c in cases() if c.split == "test")
    assert entry["control"]["constant"]["agreement"] is None
    assert "Human agreement" in evaluation.report.read_text()
    source, out = tmp_path / "images", tmp_path / "out"
    done = predict(Job(run.bundle, source, out, device="cpu"), console=Console(file=io.StringIO()))
    assert done.ok == len(cases())
    mask = read_mask(out / "masks/lesion/c3.png.png")
    assert mask.shape == (24, 20) and set(np.unique(mask)) <= {0, 1}
    assert (out / "overlays/lesion/c3.png.png").is_file()
