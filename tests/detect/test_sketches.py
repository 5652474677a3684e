"""Gradient sketches: the compression against a dense matrix, gradients against autograd, the search, files, levels."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.detect.detect_cases import CASES, gradients, model_of, rows_of
from unlearn.curvature import find_layers, fit_curvature, weights_digest
from unlearn.data import Rows, load_data
from unlearn.data.draws import derived_seed
from unlearn.detect import Sketches, gradient_sketches, join_sketches, sketch_index
from unlearn.detect.signed_group_sums import SignedGroupSums, permutation
from unlearn.errors import FolderError, InputError
from unlearn.models import build_model, mixed, noised_rows, sample_images


def compressed(sums, vectors):
    out = vectors.new_zeros(len(vectors), sums.size)
    sums.add_to(out, vectors)
    return out


def dense(sums):
    """P as a matrix (k, D), entry by entry from its buckets and signs."""
    P = torch.zeros(sums.size, len(sums.groups), dtype=torch.float64)
    for j, (group, sign) in enumerate(zip(sums.groups.tolist(), sums.signs.tolist(), strict=True)):
        P[group, j] = sign
    return P


def by_the_paper(order, signs, vector, size):
    """Pad, permute, sign, sum neighbours: the four steps of DMin."""
    padded = torch.cat([vector, vector.new_zeros(len(order) - len(vector))])
    return (padded[order] * signs).reshape(size, -1).sum(1)


def vectors_of(model, rows):
    """Each row's gradient as one vector, layer after layer, in the order of the blocks."""
    layers = find_layers(model, rows).layers
    return torch.stack([torch.cat([layer.block(g).flatten() for layer in layers]) for g in gradients(model, rows)])


# the compression


@pytest.mark.parametrize(("entries", "size"), [(7, 3), (12, 4), (5, 8), (1, 1)])
def test_the_four_steps_give_the_matrix(entries, size):
    # rejects the inverse of the permutation, strided groups, a sign per group
    sums = SignedGroupSums.drawn(entries, size, seed=3)
    total = math.ceil(entries / size) * size
    words = np.random.Philox(key=derived_seed(3, "sketch-signs")).random_raw(total)
    signs = torch.tensor([1.0 if word >= 2**63 else -1.0 for word in words.tolist()], dtype=torch.float64)
    v = torch.randn(entries, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = by_the_paper(torch.from_numpy(permutation(total, 3)), signs, v, size)
    torch.testing.assert_close(compressed(sums, v[None])[0], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(dense(sums) @ v, expected, rtol=0, atol=1e-14)


def test_inner_products_have_the_stated_mean_and_variance_over_all_permutations_and_signs():
    # every permutation of 4 places and every sign: rejects sums without signs, and the variance of a count sketch with
    # independent buckets, 1 / k in place of (m - 1) / (N - 1) = 1 / 3
    size, g, h = 2, torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 1.0, 2.0])
    products = []
    for order in itertools.permutations(range(4)):
        place = {entry: p for p, entry in enumerate(order)}
        groups = torch.tensor([place[j] // 2 for j in range(3)], dtype=torch.int32)
        for signs in itertools.product((-1, 1), repeat=3):
            sums = SignedGroupSums(size, groups, torch.tensor(signs, dtype=torch.int8))
            a, b = compressed(sums, torch.stack([g, h]).double())
            products.append(float(a @ b))
    spread = g.square().sum() * h.square().sum() + (g @ h) ** 2 - 2 * (g * h).square().sum()
    assert np.mean(products) == pytest.approx(float(g @ h), abs=1e-6)
    assert np.var(products) == pytest.approx(float(spread) / 3, rel=1e-6)


def test_drawn_seeds_are_unbiased_and_permuted():
    # rejects a permutation or signs that do not depend on the seed, or on each other
    draw = torch.Generator().manual_seed(0)
    g, h = torch.randn(2, 10, generator=draw, dtype=torch.float64)
    pairs = [compressed(SignedGroupSums.drawn(10, 5, seed), torch.stack([g, h])) for seed in range(4000)]
    products = np.array([float(a @ b) for a, b in pairs])
    spread = float(g.square().sum() * h.square().sum() + (g @ h) ** 2 - 2 * (g * h).square().sum()) / 9
    assert abs(products.mean() - float(g @ h)) < 4 * math.sqrt(spread / 4000)
    assert products.var() == pytest.approx(spread, rel=0.1)


def test_groups_are_of_one_size_and_draws_are_pinned():
    sums = SignedGroupSums.drawn(12, 4, seed=0)
    assert torch.bincount(sums.groups.long()).tolist() == [3, 3, 3, 3]
    # files written by one version are read by the next: these draws may not change
    assert sums.groups.tolist() == [3, 2, 2, 3, 2, 1, 0, 3, 1, 0, 0, 1]
    assert sums.signs.tolist() == [1, 1, -1, 1, -1, -1, 1, -1, -1, -1, 1, 1]
    assert len({SignedGroupSums.drawn(12, 4, seed=s).digest for s in range(5)}) == 5


# gradients


@pytest.mark.parametrize("case", CASES)
def test_sketches_are_the_matrix_times_the_gradients_of_autograd(case):
    # rejects another order of layers or coordinates, chunks that start at the wrong entry, division by the batch
    model, rows = model_of(case), rows_of()
    found = gradient_sketches(model, rows, size=10, seed=4)
    g = vectors_of(model, rows)
    P = dense(SignedGroupSums.drawn(g.shape[1], 10, seed=4))
    expected = torch.nn.functional.normalize(g @ P.T)
    assert found.ids == rows.ids
    torch.testing.assert_close(found.values.double(), expected, rtol=0, atol=1e-7)


def test_with_as_many_numbers_as_entries_similarities_are_cosines():
    model, rows = model_of("cnn"), rows_of()
    g = torch.nn.functional.normalize(vectors_of(model, rows))
    values = gradient_sketches(model, rows, size=g.shape[1] + 5).values.double()
    torch.testing.assert_close(values @ values.T, g @ g.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["mlp", "cnn", "grouped"])
def test_preconditioned_sketches_give_minus_the_influence(case):
    # rejects solve in place of its root, damping left out, a root in the wrong basis, and the other sign
    model, rows, queries = model_of(case), rows_of(), rows_of(4, seed=2)
    curvature = fit_curvature(model, rows)
    size = vectors_of(model, rows).shape[1]
    a, b = (
        gradient_sketches(model, data, size=size, curvature=curvature, damping=0.03, weight_decay=0.02)
        for data in (queries, rows)
    )

    def form(left, right):
        return sum(float((curvature.solve(left, damping=0.05)[name] * right[name]).sum()) for name in curvature.covered)

    of_queries, of_rows = gradients(model, queries), gradients(model, rows)
    own_queries, own_rows = ([math.sqrt(form(g, g)) for g in part] for part in (of_queries, of_rows))
    expected = [
        [form(q, z) / nq / nz for z, nz in zip(of_rows, own_rows, strict=True)]
        for q, nq in zip(of_queries, own_queries, strict=True)
    ]
    torch.testing.assert_close(
        a.values.double() @ b.values.double().T, torch.tensor(expected).double(), rtol=0, atol=1e-5
    )
    # influence is minus the form, so the nearest row is the most helpful one for its own norm
    nearest = [near[0][0] for near in b.nearest(a, k=1)]
    assert nearest == [rows.ids[int(np.argmax(row))] for row in expected]


def test_batches_and_order_change_nothing():
    model, rows = model_of("tokens"), rows_of()
    one = gradient_sketches(model, rows, size=16)
    other = gradient_sketches(model, rows.at(torch.arange(len(rows)).flip(0)), size=16, batch_size=3)
    assert other.ids == one.ids[::-1]
    torch.testing.assert_close(other.values.flip(0), one.values, rtol=0, atol=1e-6)


def test_a_zero_gradient_is_a_zero_sketch():
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    labels = model(x).detach() + torch.tensor([[0.0], [1.0]])
    values = gradient_sketches(model, (x, labels), size=8, task="regression").values
    assert values[0].tolist() == [0.0] * 8
    assert float(values[1].norm()) == pytest.approx(1)


def test_the_model_and_the_global_seed_are_left_as_found():
    model, rows = model_of("mlp").train(), rows_of()
    before, state = weights_digest(model), torch.get_rng_state()
    gradient_sketches(model, rows, size=4)
    assert weights_digest(model) == before
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# the search


def sketches_of(values, prefix="r", **options):
    return Sketches(tuple(f"{prefix}{i}" for i in range(len(values))), values, options)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_nearest_is_exact_over_blocks(monkeypatch, k):
    # rejects positions that do not count from the start of a block, and rows lost between blocks
    monkeypatch.setattr(sketch_index, "_QUERY_CHUNK", 2)
    monkeypatch.setattr(sketch_index, "_ROW_CHUNK", 4)
    draw = torch.Generator().manual_seed(0)
    rows, queries = torch.randn(11, 6, generator=draw), torch.randn(5, 6, generator=draw)
    found = sketches_of(rows).nearest(sketches_of(queries, "q"), k)
    products = queries @ rows.T
    for near, row in zip(found, products, strict=True):
        order = row.argsort(descending=True)[:k].tolist()
        assert [name for name, _ in near] == [f"r{i}" for i in order]
        assert [value for _, value in near] == pytest.approx(row[order].tolist(), abs=1e-6)


def test_equal_similarities_come_in_the_order_of_the_rows(monkeypatch):
    monkeypatch.setattr(sketch_index, "_ROW_CHUNK", 2)
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    near = sketches_of(rows).nearest(sketches_of(torch.tensor([[1.0, 0.0]])), 4)
    assert [name for name, _ in near[0]] == ["r1", "r3", "r4", "r0"]


def test_what_may_not_be_compared_is_refused():
    model, rows = model_of("mlp", torch.float32), rows_of(dtype=torch.float32)
    one = gradient_sketches(model, rows, size=8)
    with pytest.raises(InputError, match=r"made with seed = 1, the rows with 0"):
        one.nearest(gradient_sketches(model, rows, size=8, seed=1), 1)
    with pytest.raises(InputError, match=r"made with size = 9, the rows with 8"):
        one.nearest(gradient_sketches(model, rows, size=9), 1)
    with pytest.raises(InputError, match="weights_digest"):
        one.nearest(gradient_sketches(model_of("mlp", torch.float32, seed=1), rows, size=8), 1)
    with pytest.raises(InputError, match=r"layers\.0"):
        one.nearest(gradient_sketches(model, rows, size=8, skip=["0"]), 1)
    with pytest.raises(InputError, match="preconditioner"):
        one.nearest(gradient_sketches(model, rows, size=8, curvature=fit_curvature(model, rows)), 1)
    with pytest.raises(InputError, match=r"levels\.t=1\.seed = 1"):
        join_sketches({"t=1": one}).nearest(join_sketches({"t=1": gradient_sketches(model, rows, size=8, seed=1)}), 1)
    with pytest.raises(InputError, match=r"levels\.t=1\.size = None, the rows with 8"):
        join_sketches({"t=1": one}).nearest(join_sketches({"t=2": one}), 1)
    with pytest.raises(InputError, match="have 3 numbers each, the rows 2"):
        sketches_of(torch.ones(1, 2)).nearest(sketches_of(torch.ones(1, 3)), 1)
    with pytest.raises(InputError, match="k is 0"):
        one.nearest(one, 0)


def test_bad_input_is_refused():
    model, rows = model_of("mlp"), rows_of()
    with pytest.raises(InputError, match="size is 0"):
        gradient_sketches(model, rows, size=0)
    with pytest.raises(InputError, match="batch_size is 0"):
        gradient_sketches(model, rows, batch_size=0)
    with pytest.raises(InputError, match="no meaning for plain gradients"):
        gradient_sketches(model, rows, damping=0.1)
    with pytest.raises(InputError, match="no meaning beside a curvature"):
        gradient_sketches(model, rows, skip=["0"], curvature=fit_curvature(model, rows))
    with pytest.raises(InputError, match="rows r1 are not finite"):
        sketches_of(torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(InputError, match="not unique"):
        Sketches(("a", "a"), torch.ones(2, 1))
    with pytest.raises(InputError, match=r"float64 of shape \(1, 1\)"):
        Sketches(("a",), torch.ones(1, 1, dtype=torch.float64))
    with pytest.raises(InputError, match="no sketches to join"):
        join_sketches({})
    with pytest.raises(InputError, match="'b' has other rows"):
        join_sketches({"a": sketches_of(torch.ones(1, 1)), "b": sketches_of(torch.ones(1, 1), "q")})


# files


def test_a_file_gives_back_every_bit(tmp_path):
    model, rows = model_of("cnn"), rows_of()
    saved = gradient_sketches(model, rows, size=8, curvature=fit_curvature(model, rows))
    saved = join_sketches({"t=0.5": Sketches(("ü\n", *saved.ids[1:]), saved.values, saved.options)})
    saved.save(tmp_path / "rows.safetensors")
    read = Sketches.load(tmp_path / "rows.safetensors")
    assert (read.ids, read.options) == (saved.ids, saved.options)
    assert torch.equal(read.values, saved.values)
    assert read.nearest(saved, 2) == saved.nearest(saved, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.safetensors"]


def test_files_that_are_no_sketches_are_refused(tmp_path):
    path = tmp_path / "rows.safetensors"
    with pytest.raises(InputError, match="can not be read as sketches"):
        Sketches.load(path)
    path.write_bytes(b"no")
    with pytest.raises(InputError, match="can not be read as sketches"):
        Sketches.load(path)
    sketches_of(torch.ones(2, 1)).save(path)
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="can not be read as sketches"):
        Sketches.load(path)
    save_file(tensors, path, metadata={"unlearn_sketches": "0"})
    with pytest.raises(InputError, match="not a sketches file of format 1"):
        Sketches.load(path)
    save_file({"values": tensors["values"]}, path, metadata={"unlearn_sketches": "1", "options": json.dumps({})})
    with pytest.raises(InputError, match="ids_json"):
        Sketches.load(path)
    save_file(tensors, path, metadata={"unlearn_sketches": "1", "options": "{"})
    with pytest.raises(InputError, match="is damaged"):
        Sketches.load(path)
    with pytest.raises(FolderError, match="does not exist"):
        sketches_of(torch.ones(1, 1)).save(tmp_path / "missing" / "rows.safetensors")


# noise levels, and a diffusion model


def test_joined_similarities_are_the_mean_over_levels():
    draw = torch.Generator().manual_seed(0)
    parts = [[sketches_of(torch.randn(n, 4, generator=draw), p) for n, p in ((3, "r"), (2, "q"))] for _ in range(3)]
    rows, queries = (join_sketches({str(level): part[i] for level, part in enumerate(parts)}) for i in (0, 1))
    expected = sum(q.values @ r.values.T for r, q in parts) / 3
    torch.testing.assert_close(queries.values @ rows.values.T, expected)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Rows]:
    """A denoiser trained for a few seconds on 400 digits."""
    rows = load_data("digits").sample(400)
    x = rows.batch(torch.arange(400))[0].flatten(1) * 2 - 1
    model = build_model("denoiser", width=64, blocks=1)
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(600):
        batch = torch.randint(400, (64,), generator=draw)
        noise, levels = torch.randn(64, 64, generator=draw), torch.rand(64, generator=draw)
        loss = 0.5 * (model(mixed(x[batch], noise, levels)) - noise).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()
    return model, Rows.from_tensors(x, rows.labels, ids=rows.ids, classes=10)


def digit_sketches(model, images):
    return join_sketches(
        {
            f"t={level}": gradient_sketches(model, noised_rows(images, level), size=512, task="regression")
            for level in (0.3, 0.6, 0.9)
        }
    )


def test_training_rows_are_found_from_noisy_copies(digits):
    model, rows = digits
    x = rows.batch(torch.arange(40))[0]
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    index = digit_sketches(model, rows)
    for images in (x, noisy):
        ids = [f"query {i}" for i in range(40)]
        near = index.nearest(digit_sketches(model, Rows.from_tensors(images, rows.labels[:40], ids=ids)), 1)
        assert [found[0][0] for found in near] == list(rows.ids[:40])


def test_rows_near_generated_digits_agree_on_the_digit_more_than_chance(digits):
    model, rows = digits
    queries = Rows.from_tensors(sample_images(model, 40, seed=3), torch.zeros(40, dtype=torch.long))
    near = digit_sketches(model, rows).nearest(digit_sketches(model, queries), 5)
    labels = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    pairs = [labels[a] == labels[b] for found in near for (a, _), (b, _) in itertools.combinations(found, 2)]
    assert np.mean(pairs) > 0.2  # chance is 0.1
