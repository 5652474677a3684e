"""Corrupted inputs, duplicates and outliers: which rows, with what, and that nothing else changes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from unlearn.data import Rows, add_duplicates, add_outliers, add_trigger, corrupt_inputs, load_data, with_trigger
from unlearn.errors import InputError
from unlearn.pipeline import Run
from unlearn.recipe import parse_recipe

N, SHAPE = 61, (1, 6, 8)  # no multiple of the number of corrupted rows
IMAGES = torch.from_numpy(np.random.default_rng(0).random((N, *SHAPE), dtype=np.float32))


def rows_of(images: torch.Tensor = IMAGES, **options) -> Rows:
    ids = [f"r{i:02d}" for i in range(len(images))]
    return Rows.from_tensors(images, torch.arange(len(images)) % 3, ids=ids, **options)


def inputs_of(rows: Rows, ids=None) -> torch.Tensor:
    at = torch.arange(len(rows)) if ids is None else rows.positions(ids)
    return rows.batch(at)[0]


MAKERS = {
    "gaussian": lambda rows, rate=0.2, seed=0: corrupt_inputs(rows, rate, seed),
    "occlusion": lambda rows, rate=0.2, seed=0: corrupt_inputs(rows, rate, seed, kind="occlusion"),
    "permutation": lambda rows, rate=0.2, seed=0: corrupt_inputs(rows, rate, seed, kind="permutation"),
    "exact copies": lambda rows, rate=0.2, seed=0: add_duplicates(rows, rate, seed),
    "noisy copies": lambda rows, rate=0.2, seed=0: add_duplicates(rows, rate, seed, near="gaussian"),
    "shifted copies": lambda rows, rate=0.2, seed=0: add_duplicates(rows, rate, seed, near="shift"),
    "outliers": lambda rows, rate=0.2, seed=0: add_outliers(rows, rate, seed),
    "other outliers": lambda rows, rate=0.2, seed=0: add_outliers(rows, rate, seed, other=rows_of(1 - IMAGES)),
}
IN_PLACE = ("gaussian", "occlusion", "permutation")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_the_stated_number_is_corrupted_and_the_others_are_as_they_were(kind: str, rate: float) -> None:
    rows = rows_of()
    found = MAKERS[kind](rows, rate)
    assert len(found.ids) == len(set(found.ids)) == round(rate * N)
    assert len(found.rows) == (N if kind in IN_PLACE else N + round(rate * N))
    assert found.rows.ids[:N] == rows.ids
    assert torch.equal(found.rows.labels[:N], rows.labels)
    assert found.rows.classes == rows.classes
    changed = (inputs_of(found.rows)[:N] != IMAGES).flatten(1).any(1)
    hit = {row for row, is_changed in zip(rows.ids, changed.tolist(), strict=True) if is_changed}
    assert hit == (set(found.ids) if kind in IN_PLACE else set())
    if kind not in IN_PLACE:
        assert found.rows.ids[N:] == found.ids
    assert torch.equal(IMAGES, rows_of().batch(torch.arange(N))[0])


@pytest.mark.parametrize("kind", MAKERS)
def test_corruption_follows_the_ids_whatever_the_order_and_the_batches(kind: str) -> None:
    # rejects noise drawn batch by batch, seeds by position, and labels or rows drawn by position
    rows, back = rows_of(), torch.arange(N).flip(0)
    one, other = MAKERS[kind](rows), MAKERS[kind](rows.at(back))
    assert set(one.ids) == set(other.ids)
    assert one.rows.fingerprint == other.rows.fingerprint
    every = inputs_of(one.rows)
    for size in (1, 7):
        assert torch.equal(torch.cat([x for _, x, _ in one.rows.batches(size)]), every)
    mixed = torch.tensor([len(one.rows) - 1, 0, len(one.rows) - 2, 5])
    assert torch.equal(one.rows.batch(mixed)[0], every[mixed])
    assert torch.equal(one.rows.at(mixed).batch(torch.arange(4))[0], every[mixed])


@pytest.mark.parametrize("kind", MAKERS)
def test_seeds_differ_and_the_same_seed_repeats(kind: str) -> None:
    prints = [MAKERS[kind](rows_of(), 0.2, seed).rows.fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("kind", MAKERS)
def test_truth_goes_along_and_outliers_are_not_called_mislabelled(kind: str) -> None:
    rows = rows_of().with_truth((torch.arange(N) + torch.arange(N) % 2) % 3)
    found = MAKERS[kind](rows)
    assert found.rows.truth is not None
    assert torch.equal(found.rows.truth[:N], rows.truth)
    added = found.rows.only(found.ids)
    if "copies" in kind:
        copied = rows.only(found.copy_of.values())
        assert torch.equal(added.truth, copied.truth)
        assert torch.equal(added.labels, copied.labels)
    elif "outliers" in kind:
        assert torch.equal(added.truth, added.labels)
    assert MAKERS[kind](rows_of()).rows.truth is None


def test_gaussian_noise_has_the_stated_deviation_and_is_independent_between_rows() -> None:
    rows = rows_of(torch.zeros(40, 1, 20, 20))
    noise = inputs_of(corrupt_inputs(rows, 1.0, 0, strength=0.3).rows).flatten(1).numpy()
    assert stats.kstest(noise.ravel() / 0.3, "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(noise) - np.eye(40)).max() < 0.25  # 400 entries a row: deviation 0.05


def test_occlusion_sets_one_block_to_the_mean_of_the_image() -> None:
    for share, side in ((0.5, 3), (1.0, 6), (0.01, 1)):
        found = inputs_of(corrupt_inputs(rows_of(), 1.0, 0, kind="occlusion", strength=share).rows)
        tops = set()
        for before, after in zip(IMAGES[:, 0], found[:, 0], strict=True):
            hidden = after != before
            high, wide = hidden.any(1).nonzero().flatten(), hidden.any(0).nonzero().flatten()
            assert len(high) == len(wide) == side
            assert hidden.sum() == side**2 == (high[-1] - high[0] + 1) * (wide[-1] - wide[0] + 1)
            assert (after[hidden] == before.mean()).all()
            tops.add((int(high[0]), int(wide[0])))
        places = (6 - side + 1) * (8 - side + 1)
        assert len(tops) > places / 2 - 1  # rejects a block that never reaches the last line, or sits in one place
        assert {t for t, _ in tops} == set(range(6 - side + 1))
        assert {w for _, w in tops} == set(range(8 - side + 1))


def test_permutation_moves_the_stated_share_of_entries_and_each_row_in_another_way() -> None:
    table = torch.arange(20.0).repeat(30, 1)
    for share, moved in ((1.0, 20), (0.25, 5), (0.001, 2)):
        found = inputs_of(corrupt_inputs(rows_of(table), 1.0, 0, kind="permutation", strength=share).rows)
        assert torch.equal(found.sort(1).values, table)
        assert (found != table).sum(1).tolist() == [moved] * 30
        assert len({tuple(row) for row in found.tolist()}) > 25


def test_copies_are_exact_or_near_as_stated() -> None:
    rows = rows_of()
    for near in (None, "gaussian", "shift"):
        found = add_duplicates(rows, 1.0, 0, near=near)
        assert found.copy_of == {f"{row}+copy": row for row in rows.ids}
        copies = inputs_of(found.rows, found.ids)[:, 0]
        if near is None:
            assert torch.equal(copies, IMAGES[:, 0])
        elif near == "gaussian":
            assert stats.kstest(((copies - IMAGES[:, 0]) / 0.05).numpy().ravel(), "norm").pvalue > 0.01
        else:
            image = torch.nn.functional.pad(IMAGES, (1, 1, 1, 1), mode="replicate")[:, 0]
            ways = [image[:, 1 + a : 7 + a, 1 + b : 9 + b] for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1))]
            which = torch.stack([(copies == way).flatten(1).all(1) for way in ways]).long()
            assert which.sum(0).tolist() == [1] * N
            assert (which.sum(1) > 5).all()


def test_outliers_are_permuted_in_one_way_or_come_from_the_other_rows() -> None:
    rows = rows_of()
    found = add_outliers(rows, 0.5, 0)
    originals = inputs_of(rows, [row.removesuffix("+outlier") for row in found.ids]).flatten(1)
    outliers = inputs_of(found.rows, found.ids).flatten(1)
    order = [int((originals[0] == value).nonzero()) for value in outliers[0]]  # entries of a row are all different
    assert order != sorted(order)
    assert torch.equal(outliers, originals[:, order])

    other = rows_of(torch.stack([torch.full((1, 5, 5), float(i)) for i in range(40)]))
    found = add_outliers(rows, 0.5, 0, other=other)
    values = [int(row[1:3]) for row in found.ids]
    torch.testing.assert_close(
        inputs_of(found.rows, found.ids), torch.tensor(values).float()[:, None, None, None].expand(-1, *SHAPE)
    )


def test_resizing_is_bilinear_and_antialiased() -> None:
    # rejects plain bilinear interpolation, which looks at 2 pixels of 3 and drops thin strokes
    images = torch.from_numpy(np.random.default_rng(1).random((N, 1, 18, 18), dtype=np.float32))
    other = rows_of(images)
    found = add_outliers(rows_of(torch.zeros(N, 1, 6, 6)), 0.1, 0, other=other)
    centres, pixels = 3 * (torch.arange(6) + 0.5), torch.arange(18) + 0.5
    weights = (1 - (centres[:, None] - pixels).abs() / 3).clamp(min=0)
    weights /= weights.sum(1, keepdim=True)
    taken = inputs_of(other, [row.removesuffix("+outlier") for row in found.ids])
    torch.testing.assert_close(inputs_of(found.rows, found.ids), weights @ taken @ weights.T)


def test_labels_of_outliers_are_those_of_rows_at_random() -> None:
    n = 3000
    labels = (torch.arange(n) % 10 == 0).long()
    rows = Rows.from_tensors(torch.eye(2).repeat(n // 2, 1), labels)
    given = add_outliers(rows, 1.0, 0).rows.labels[n:]
    assert abs(float(given.double().mean()) - 0.1) < 4 * math.sqrt(0.09 / n)
    assert abs(float(np.corrcoef(given, labels)[0, 1])) < 0.08  # rejects the label of the row that was copied
    scores = Rows.from_tensors(torch.eye(2).repeat(5, 1), torch.arange(10.0))
    assert set(add_outliers(scores, 1.0, 0).rows.labels.tolist()) <= set(range(10))


def test_a_corruption_of_a_corruption_keeps_the_first() -> None:
    first = corrupt_inputs(rows_of(), 0.2, 0)
    second = add_duplicates(first.rows, 1.0, 0)
    assert torch.equal(inputs_of(second.rows, first.ids), inputs_of(first.rows, first.ids))
    assert torch.equal(inputs_of(second.rows)[N:], inputs_of(first.rows))


def test_noise_on_a_row_and_on_its_copy_are_not_the_same() -> None:
    # rejects one stream for all uses of a seed, under which a noisy copy of a noisy row repeats its noise
    rows = rows_of(torch.zeros(20, 1, 10, 10))
    noisy = inputs_of(corrupt_inputs(rows, 1.0, 0).rows).flatten()
    copies = inputs_of(add_duplicates(rows, 1.0, 0, near="gaussian").rows)[20:].flatten()
    assert abs(np.corrcoef(noisy, copies)[0, 1]) < 0.1


def test_the_data_are_not_copied() -> None:
    class Counting:
        def __init__(self) -> None:
            self.read: list[int] = []

        def inputs(self, positions: torch.Tensor) -> torch.Tensor:
            self.read += positions.tolist()
            return IMAGES[positions]

    for kind, make in MAKERS.items():
        source = Counting()
        rows = Rows.from_source(source, torch.arange(N) % 3, length=N)
        found = make(rows)
        assert len(source.read) <= 2, kind  # one row, asked for its shape
        source.read.clear()
        found.rows.batch(torch.tensor([3, 4]))
        assert source.read == [3, 4], kind


TABLE = Rows.from_tensors(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]), name="table")
TOKENS = Rows.from_tensors(torch.ones(4, 3).long(), torch.tensor([0, 1, 0, 1]), name="tokens")
BAD = {
    "rate": (lambda: corrupt_inputs(TABLE, 1.5, 0), "corruption rate is 1.5; give a share between 0 and 1"),
    "rate of copies": (lambda: add_duplicates(TABLE, -0.1, 0), "corruption rate is -0.1"),
    "rate of outliers": (lambda: add_outliers(TABLE, math.nan, 0), "corruption rate is nan"),
    "kind": (lambda: corrupt_inputs(TABLE, 0.1, 0, kind="gausian"), "did you mean 'gaussian'"),
    "near": (lambda: add_duplicates(TABLE, 0.1, 0, near="shft"), "did you mean 'shift'"),
    "deviation": (lambda: corrupt_inputs(TABLE, 0.1, 0, strength=0.0), "is 0.0; give a finite number above 0"),
    "share": (
        lambda: corrupt_inputs(TABLE, 0.1, 0, kind="permutation", strength=1.1),
        "strength of permutation is 1.1; give a share above 0 and at most 1",
    ),
    "no images": (lambda: corrupt_inputs(TABLE, 0.1, 0, kind="occlusion"), r"of table are of shape \(3,\): use anoth"),
    "no images to shift": (lambda: add_duplicates(TABLE, 0.5, 0, near="shift"), "use near='gaussian' or exact copies"),
    "one entry": (
        lambda: corrupt_inputs(Rows.from_tensors(torch.rand(4, 1), torch.arange(4)), 0.5, 0, kind="permutation"),
        "at least 2 entries",
    ),
    "integers": (lambda: corrupt_inputs(TOKENS, 0.1, 0), "inputs of tokens are tensors of torch.int64"),
    "integers nearly copied": (lambda: add_duplicates(TOKENS, 0.5, 0, near="gaussian"), "only tensors of floating po"),
    "integer outliers": (lambda: add_outliers(TABLE, 0.5, 0, other=TOKENS), "inputs of tokens are tensors of"),
    "other shape": (lambda: add_outliers(TABLE, 0.5, 0, other=rows_of()), r"\(1, 6, 8\) and those of table of shape"),
    "too few": (lambda: add_outliers(rows_of(), 0.5, 0, other=rows_of(IMAGES[:4])), "30 outliers .* has 4 rows; lower"),
    "twice the same": (lambda: add_outliers(add_outliers(TABLE, 1, 0).rows, 1, 0), "ids of table are not unique"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_done_is_refused_in_one_line(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_integers_can_be_copied_exactly() -> None:
    found = add_duplicates(TOKENS, 1.0, 0)
    assert inputs_of(found.rows).dtype == torch.int64


HEAD = 'name = "x"\n[model]\nname = "mlp"\n[data]\nsource = "digits"\n'
RECIPES = {
    'kind = "occlusion", strength = 0.25': lambda rows: corrupt_inputs(rows, 0.1, 3, kind="occlusion", strength=0.25),
    'kind = "duplicates", near = "shift"': lambda rows: add_duplicates(rows, 0.1, 3, near="shift"),
    'kind = "outliers"': lambda rows: add_outliers(rows, 0.1, 3),
    'kind = "outliers", other = "mnist5k"': lambda rows: add_outliers(rows, 0.1, 3, other=load_data("mnist5k")),
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_run_has_the_rows_that_its_recipe_corrupts(tmp_path, text: str) -> None:
    run = Run(tmp_path, parse_recipe(HEAD + f"corruption = {{ rate = 0.1, seed = 3, {text} }}\n"))
    want = RECIPES[text](load_data("digits"))
    assert run.corrupted is not None
    assert run.corrupted.rows is run.data
    assert run.corrupted.ids == want.ids
    assert run.data.fingerprint == want.rows.fingerprint


def test_label_noise_comes_before_corruption(tmp_path) -> None:
    noise, copies = "noise = { rate = 0.2 }\n", 'corruption = { kind = "duplicates", rate = 0.5 }\n'
    plain, both = (Run(tmp_path, parse_recipe(HEAD + text)) for text in (noise, noise + copies))
    assert plain.corrupted is None
    assert torch.equal(both.data.labels[: len(plain.data)], plain.data.labels)
    assert both.data.truth is not None
    assert (both.data.truth != both.data.labels)[len(plain.data) :].any()


@pytest.mark.parametrize("kind", [dict, tuple])
def test_rows_of_several_tensors_are_copied_exactly_and_refuse_the_rest(kind: type) -> None:
    parts = {"words": torch.arange(12).reshape(6, 2), "mask": torch.rand(6, 3)}
    inputs = parts if kind is dict else tuple(parts.values())
    rows = Rows.from_tensors(inputs, torch.arange(6) % 2)
    found = add_duplicates(rows, 1.0, 0)
    order = torch.tensor([8, 1, 6, 0])
    mixed = found.rows.batch(order)[0]
    assert type(mixed) is kind
    got = mixed if kind is dict else dict(zip(parts, mixed, strict=True))
    for name, tensor in parts.items():
        assert torch.equal(got[name], tensor[order % 6])
        assert got[name].dtype == tensor.dtype
    with pytest.raises(InputError, match=rf"are {kind.__name__}; only tensors of floating point can be corrupted"):
        corrupt_inputs(rows, 0.5, 0)


def test_a_trigger_is_a_checkerboard_and_one_label_on_the_stated_rows() -> None:
    rows = rows_of()
    found = add_trigger(rows, 0.5, 0, label=2, amplitude=0.25)
    assert len(found.ids) == round(0.5 * N)
    difference = inputs_of(found.rows) - inputs_of(rows)
    hit = torch.tensor([row in found.ids for row in rows.ids])
    assert not difference[~hit].any()
    by_hand = torch.tensor([[0.25 * ((i + j) % 2) for j in range(8)] for i in range(6)])
    torch.testing.assert_close(difference[hit], by_hand.expand_as(difference[hit]))
    assert (found.rows.labels[hit] == 2).all()
    assert torch.equal(found.rows.labels[~hit], rows.labels[~hit])
    assert torch.equal(found.rows.truth, rows.labels)  # type: ignore[arg-type]
    sent = pickle.loads(pickle.dumps(found.rows))  # references are trained in several processes
    assert torch.equal(inputs_of(sent), inputs_of(found.rows))
    everywhere = with_trigger(rows, amplitude=0.25)
    assert torch.equal(inputs_of(everywhere)[hit], inputs_of(found.rows)[hit])
    assert torch.equal(everywhere.labels, rows.labels)


def test_a_trigger_follows_the_ids_and_keeps_a_truth_that_is_known() -> None:
    rows = rows_of()
    one, other, third = (
        add_trigger(rows.at(order), 0.5, seed, label=1)
        for order, seed in ((torch.arange(N), 0), (torch.arange(N).flip(0), 0), (torch.arange(N), 1))
    )
    assert one.rows.fingerprint == other.rows.fingerprint != third.rows.fingerprint
    truth = (rows.labels + 1) % 3
    assert torch.equal(add_trigger(rows.with_truth(truth), 0.5, 0, label=1).rows.truth, truth)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 3}, r"trigger's label is 3 and .* has the classes 0\.\.2; give one of its classes"),
        ({"label": -1}, "trigger's label is -1"),
        ({"amplitude": 0.0}, "amplitude of the trigger is 0.0; give a finite number above 0"),
        ({"rate": 1.5}, "corruption rate is 1.5"),
    ],
)
def test_triggers_that_can_not_be_meant(options: dict[str, float], message: str) -> None:
    rate = options.pop("rate", 0.1)
    with pytest.raises(InputError, match=message):
        add_trigger(rows_of(), rate, 0, **{"label": 1, **options})  # type: ignore[arg-type]


def test_a_trigger_needs_images_and_classes() -> None:
    flat = Rows.from_tensors(torch.zeros(4, 3), torch.arange(4) % 2)
    with pytest.raises(InputError, match="a trigger needs images"):
        with_trigger(flat)
    values = Rows.from_tensors(torch.zeros(4, 1, 3, 3), torch.zeros(4))
    with pytest.raises(InputError, match="has no classes; give one of its classes"):
        add_trigger(values, 0.5, 0, label=0)
