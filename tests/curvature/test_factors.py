"""K-FAC, EK-FAC and diagonal curvature against dense matrices built from one backward pass for each row."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import (
    CASES,
    CLASSIFICATION,
    REGRESSION,
    Transposed,
    build,
    dense_blocks,
    fisher_columns,
    flat,
    gradient_table,
    kronecker,
    vector_of,
)
from torch import Tensor, nn

from unlearn.curvature import Curvature, Layer, find_layers, fit_curvature, layer_gradients
from unlearn.curvature.kronecker import eigenbasis
from unlearn.data import Rows
from unlearn.errors import InputError, StaleCurvatureError
from unlearn.modes import evaluation

DAMPING = 0.03


def slow_factors(model: nn.Module, rows: Rows, columns: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """K-FAC's A and S written down from the definitions, with hooks and a loop over rows and positions.

    Layers that no hook sees (packed projections) are left out. A column's factors are 1 and its dense Fisher.
    """
    layers = find_layers(model, rows).layers
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, x: tuple[Tensor], y: Tensor) -> Tensor:
        seen.append((module, x[0], y))
        return y.clone()  # what overwrites this copy leaves y alone

    kinds = (nn.Linear, Transposed, nn.Conv1d, nn.Conv2d, nn.Embedding)
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    inputs = rows.batch(torch.arange(len(rows)))[0]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for b in range(len(rows)):
        with evaluation(model):
            seen.clear()
            outputs = model(inputs[b : b + 1])
        for layer in filter(lambda layer: layer.is_matrix, layers):
            by_column = []
            for c in range(len(columns)):
                pairs = []
                for module, x, y in seen:
                    if {id(p) for p in module.parameters()} & {id(model.get_parameter(n)) for n in layer.parameters}:
                        (d,) = torch.autograd.grad(
                            outputs, y, columns[c, b][None], retain_graph=True, materialize_grads=True
                        )
                        pairs += positions_of(layer, module, x.detach(), d)
                by_column.append(pairs)
            if not by_column[0]:
                continue
            positions = range(len(by_column[0]))
            if layer.kind in ("Linear", "Embedding") and len(positions) > 1:  # what no output depends on is left out
                positions = [t for t in positions if any(pairs[t][1].any() for pairs in by_column)]
            A, S = found.get(layer.name, (0.0, 0.0))
            for t in positions:
                A = A + torch.einsum("gi,gj->gij", by_column[0][t][0], by_column[0][t][0]) / len(rows)
                for pairs in by_column:
                    S = S + torch.einsum("gi,gj->gij", pairs[t][1], pairs[t][1]) / len(rows) / len(positions)
            found[layer.name] = A, S
    for handle in handles:
        handle.remove()
    table = gradient_table(model, rows, columns)
    for layer in layers:
        if not layer.is_matrix:
            g = table[layer.name][:, 0, :, 0]
            found[layer.name] = torch.ones(1, 1, 1, dtype=g.dtype), (g.T @ g / len(rows))[None]
    return found


def positions_of(layer: Layer, module: nn.Module, x: Tensor, d: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Inputs (g, i) and gradients (g, o) of each position; a patch is found as the gradient of one output."""
    if isinstance(module, nn.Embedding):
        units = [torch.eye(len(module.weight), dtype=d.dtype)[int(k)] * (int(k) != module.padding_idx) for k in x[0]]
        return [(unit[None], part[None]) for unit, part in zip(units, d[0], strict=True)]
    if isinstance(module, (nn.Linear, Transposed)):
        first = x.reshape(-1, x.shape[-1])
        inputs, gradients = [row[None] for row in first], [row[None] for row in d.reshape(len(first), -1)]
    else:
        g = module.groups
        weight = module.weight.detach().clone().requires_grad_()
        out, d = module._conv_forward(x, weight, None)[0].flatten(1), d[0].flatten(1)
        inputs, gradients = [], []
        for t in range(out.shape[1]):
            (patch,) = torch.autograd.grad(out[:, t].sum(), weight, retain_graph=True)
            inputs.append(patch.reshape(g, len(weight) // g, -1)[:, 0])
            gradients.append(d[:, t].reshape(g, -1))
    ones = [a.new_ones(len(a), 1) for a in inputs]
    if layer.weight is None:
        inputs = ones
    elif layer.bias is not None:
        inputs = [torch.cat(pair, 1) for pair in zip(inputs, ones, strict=True)]
    return list(zip(inputs, gradients, strict=True))


def dense_ekfac(curvature: Curvature, model: nn.Module, rows: Rows, columns: Tensor) -> dict[str, Tensor]:
    """Dense EK-FAC matrices: eigenbases of the slow factors, Lambda from single gradients."""
    factors = slow_factors(model, rows, columns)
    table = gradient_table(model, rows, columns)
    matrices = {}
    for name, (A, S) in factors.items():
        U = kronecker(torch.linalg.eigh(S)[1], torch.linalg.eigh(A)[1])
        gradients = table[name].flatten(2).transpose(0, 1)  # group, (column, row), coordinate
        lam = (gradients @ U).square().sum(1) / len(rows)
        matrices[name] = U * lam[:, None] @ U.mT
    return matrices


def plus(matrices: dict[str, Tensor], damping: float) -> dict[str, Tensor]:
    return {name: m + damping * torch.eye(m.shape[1], dtype=m.dtype) for name, m in matrices.items()}


def assert_operator(curvature: Curvature, matrices: dict[str, Tensor], model: nn.Module) -> None:
    v = vector_of(model)
    torch.testing.assert_close(curvature.matvec(v), dense_blocks(curvature, matrices, v), rtol=1e-8, atol=1e-12)
    inverses = {name: torch.linalg.inv(m) for name, m in plus(matrices, DAMPING).items()}
    solved = curvature.solve(v, damping=DAMPING)
    torch.testing.assert_close(solved, dense_blocks(curvature, inverses, v), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize("case", CASES)
def test_kfac_is_the_kronecker_product_of_its_factors(case: str, fisher: str) -> None:
    # a factor averaged over positions twice, or not at all, differs by T
    model, rows = build(case)
    curvature = fit_curvature(model, rows, kind="kfac", fisher=fisher, batch_size=4)
    factors = slow_factors(model, rows, fisher_columns(model, rows, CLASSIFICATION, fisher))
    for name, (A, S) in factors.items():
        torch.testing.assert_close(curvature.blocks[name].input_factor, A, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(curvature.blocks[name].output_factor, S, rtol=1e-9, atol=1e-12)
    matrices = {name: kronecker(S, A) for name, (A, S) in factors.items()}
    for name in curvature.blocks.keys() - matrices.keys():
        assert "attention" in case  # see test_packed_projections
        assert name.split(".")[-1].startswith(
            ("self_attn", "attention", "in_proj", "q_proj", "k_proj", "v_proj", "out")
        )
        block = curvature.blocks[name]
        matrices[name] = kronecker(block.output_factor, block.input_factor)
    assert_operator(curvature, matrices, model)


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize("case", CASES)
def test_ekfac_has_mean_squared_gradients_in_the_kfac_basis(case: str, fisher: str) -> None:
    model, rows = build(case)
    curvature = fit_curvature(model, rows, fisher=fisher, batch_size=4)
    columns = fisher_columns(model, rows, CLASSIFICATION, fisher)
    table = gradient_table(model, rows, columns)
    matrices = {}
    for name, block in curvature.blocks.items():
        bases = []
        for basis, factor in ((block.input_basis, block.input_factor), (block.output_basis, block.output_factor)):
            if basis is None:
                assert torch.equal(factor, factor.diagonal(dim1=1, dim2=2).diag_embed())
                bases.append(torch.eye(factor.shape[1], dtype=factor.dtype).expand_as(factor))
                continue
            bases.append(basis)
            eye = torch.eye(basis.shape[1], dtype=basis.dtype).expand_as(basis)
            torch.testing.assert_close(basis.mT @ basis, eye, rtol=0, atol=1e-10)
            rotated = basis.mT @ factor @ basis
            torch.testing.assert_close(rotated, torch.diag_embed(rotated.diagonal(dim1=1, dim2=2)), atol=1e-9, rtol=0)
        U = kronecker(bases[1], bases[0])
        gradients = table[name].flatten(2).transpose(0, 1)
        lam = (gradients @ U).square().sum(1) / len(rows)
        torch.testing.assert_close(block.eigenvalues.flatten(1), lam, rtol=1e-8, atol=1e-13)
        matrices[name] = U * lam[:, None] @ U.mT
    assert_operator(curvature, matrices, model)


def test_ekfac_from_bases_found_without_the_package() -> None:
    # n is large enough that no eigenvalue repeats: the basis of a repeated eigenvalue is arbitrary
    model, rows = build("linear-no-bias", n=40)
    curvature = fit_curvature(model, rows, fisher="exact")
    columns = fisher_columns(model, rows, CLASSIFICATION, "exact")
    matrices = dense_ekfac(curvature, model, rows, columns)
    v = vector_of(model)
    first = curvature.blocks["0"].layer.parameters  # its factors have full rank, so the basis is unique
    expected = dense_blocks(curvature, matrices, v)
    for name in first:
        torch.testing.assert_close(curvature.matvec(v)[name], expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_diagonal_is_the_diagonal_of_the_dense_fisher(case: str) -> None:
    model, rows = build(case)
    curvature = fit_curvature(model, rows, kind="diagonal", fisher="exact", batch_size=4)
    table = gradient_table(model, rows, fisher_columns(model, rows, CLASSIFICATION, "exact"))
    for name, gradients in table.items():
        block = curvature.blocks[name]
        torch.testing.assert_close(block.eigenvalues, gradients.square().sum(0) / len(rows), rtol=1e-10, atol=1e-15)
        assert block.input_basis is None
        assert block.input_factor is None
        assert block.output_factor is None
    matrices = {name: torch.diag_embed(block.eigenvalues.flatten(1)) for name, block in curvature.blocks.items()}
    assert_operator(curvature, matrices, model)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_one_linear_layer_with_squared_error_is_exact(kind: str) -> None:
    # G = 1 (x) (1/n) sum a a^T: K-FAC's independence of a and d holds exactly
    x = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(4, 3).double()
    curvature = fit_curvature(model, (x, torch.zeros(12, 3).double()), task="regression", kind=kind, fisher="exact")
    a = torch.cat([x, torch.ones(12, 1)], 1).double()
    G = torch.kron(torch.eye(3).double(), a.T @ a / 12)
    v = vector_of(model)
    block = torch.cat([v["weight"], v["bias"][:, None]], 1)
    solved = curvature.solve(v, damping=DAMPING)
    expected = torch.linalg.solve(G + DAMPING * torch.eye(15).double(), block.flatten()).reshape(3, 5)
    torch.testing.assert_close(torch.cat([solved["weight"], solved["bias"][:, None]], 1), expected, rtol=1e-9, atol=0)
    back = curvature.matvec(curvature.solve(v, damping=0))
    torch.testing.assert_close(flat(back), flat(v), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", ["linear", "conv-stride"])
def test_sampled_labels_converge_to_the_exact_fisher(case: str) -> None:
    model, rows = build(case, torch.float32)
    exact = fit_curvature(model, rows, kind="diagonal", fisher="exact")
    draws = [fit_curvature(model, rows, kind="diagonal", seed=seed) for seed in range(300)]
    for name, block in exact.blocks.items():
        mean = torch.stack([draw.blocks[name].eigenvalues for draw in draws]).mean(0)
        assert float((mean - block.eigenvalues).norm() / block.eigenvalues.norm()) < 0.1
    one = draws[0].blocks["0"].eigenvalues
    assert not torch.equal(one, draws[1].blocks["0"].eigenvalues)


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
def test_given_labels_are_not_read(kind: str, fisher: str) -> None:
    # the empirical Fisher, built from given labels, changes when they are permuted
    model, rows = build("conv-stride")
    permuted = rows.relabelled({row: (int(label) + 1) % 3 for row, label in zip(rows.ids, rows.labels, strict=True)})
    first, second = (fit_curvature(model, data, kind=kind, fisher=fisher) for data in (rows, permuted))
    empirical = gradient_table(model, rows, CLASSIFICATION.output_gradient(outputs_of(model, rows), rows.labels)[None])
    for name, block in first.blocks.items():
        assert torch.equal(block.eigenvalues, second.blocks[name].eigenvalues)
        if kind == "diagonal":
            assert not torch.allclose(block.eigenvalues, empirical[name].square().mean(0), rtol=0.01)


class ByHand(nn.Module):
    """Self-attention written out, with the packed projection as a layer."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(4, 12).double(), attention.out_proj
        self.project.weight, self.project.bias = attention.in_proj_weight, attention.in_proj_bias

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, 2)).transpose(1, 2) for part in self.project(x).chunk(3, 2))
        attended = (q @ k.mT / 2**0.5).softmax(3) @ v
        return nn.functional.linear(attended.transpose(1, 2).flatten(2), self.out.weight, self.out.bias)


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
def test_packed_projections_have_the_curvature_of_attention_by_hand(fisher: str) -> None:
    torch.manual_seed(0)
    attention, head = nn.MultiheadAttention(4, 2, batch_first=True).double(), nn.Linear(4, 3).double()
    x, y = torch.randn(9, 5, 4, dtype=torch.float64), torch.arange(9) % 3

    class Model(nn.Module):
        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.attention, self.head = attention, head

        def forward(self, x: Tensor) -> Tensor:
            packed = isinstance(self.attention, nn.MultiheadAttention)
            return self.head((self.attention(x, x, x)[0] if packed else self.attention(x)).tanh().mean(1))

    first, second = (
        fit_curvature(Model(module), (x, y), fisher=fisher) for module in (attention, ByHand(attention).double())
    )
    pairs = {"attention": "attention.project", "attention.out_proj": "attention.out", "head": "head"}
    assert list(first.blocks) == list(pairs)
    for one, other in pairs.items():
        for part in ("input_factor", "output_factor", "eigenvalues"):
            found, right = (getattr(c.blocks[name], part) for c, name in ((first, one), (second, other)))
            # the factor of softmax outputs sums to 0 but for rounding, which differs between processors
            torch.testing.assert_close(found.sum(), right.sum(), rtol=1e-10, atol=1e-15 * float(right.abs().sum()))
            if part != "eigenvalues":  # whose order follows a basis that is arbitrary where eigenvalues repeat
                torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-13)


def test_long_columns_keep_their_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn.curvature.layers.DENSE_COLUMN", 10)
    model, rows = build("embedding", n=20)
    table = gradient_table(model, rows, fisher_columns(model, rows, CLASSIFICATION, "exact"))
    for kind in ("ekfac", "kfac"):
        curvature = fit_curvature(model, rows, kind=kind, fisher="exact")
        forms = {name: block.layer.form for name, block in curvature.blocks.items()}
        assert forms == {"token": "factors", "place": "diagonal", "norm": "dense", "head": "factors"}
        assert all(word in curvature.summary() for word in ("diagonal", "dense", "Embedding", "LayerNorm", "other"))
        place, norm = curvature.blocks["place"], curvature.blocks["norm"]
        squares = table["place"].square().sum(0) / 20
        torch.testing.assert_close(place.eigenvalues, squares, rtol=1e-10, atol=1e-15)
        g = table["norm"][:, 0, :, 0]
        v = torch.ones(1, 8, 1, dtype=torch.float64)
        torch.testing.assert_close(norm.matvec(v)[0], g.T @ g @ v[0] / 20, rtol=1e-9, atol=1e-12)


def outputs_of(model: nn.Module, rows: Rows) -> Tensor:
    return model(rows.batch(torch.arange(len(rows)))[0]).detach()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
def test_batch_size_and_order_change_nothing(kind: str, fisher: str, batch_size: int) -> None:
    # gradients of a batch's mean loss would tell the story of the smaller last batch: in 7s, its 2 rows would weigh
    # (7 / 2) squared times as much as the others
    model, rows = build("conv-groups", n=30)
    v = vector_of(model)
    expected = fit_curvature(model, rows, kind=kind, fisher=fisher, batch_size=30).solve(v, damping=DAMPING)
    shuffled = rows.at(torch.randperm(30, generator=torch.Generator().manual_seed(0)))
    found = fit_curvature(model, shuffled, kind=kind, fisher=fisher, batch_size=batch_size).solve(v, damping=DAMPING)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", ["linear", "conv-padding"])
def test_float32_is_close_to_float64(case: str) -> None:
    solved = {}
    for dtype in (torch.float32, torch.float64):
        model, rows = build(case, dtype, n=40)
        curvature = fit_curvature(model, rows, fisher="exact")
        assert all(block.eigenvalues.dtype == dtype for block in curvature.blocks.values())
        solved[dtype] = flat(curvature.solve(vector_of(model), damping=DAMPING)).double()
    torch.testing.assert_close(solved[torch.float32], solved[torch.float64], rtol=1e-3, atol=1e-3)


def test_dtype_is_that_of_the_factors_and_vectors_keep_theirs() -> None:
    model, rows = build("conv-stride", torch.float32)
    curvature = fit_curvature(model, rows, dtype=torch.float64)
    assert all(block.input_basis.dtype == torch.float64 for block in curvature.blocks.values())
    assert all(part.dtype == torch.float32 for part in curvature.matvec(vector_of(model)).values())


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("case", CASES)
def test_quadratic_is_each_rows_gradient_against_its_solve(case: str, kind: str) -> None:
    model, rows = build(case)
    curvature = fit_curvature(model, rows, kind=kind)
    for positions, gradients in layer_gradients(model, rows, "classification", curvature.layers, 4):
        for name, (a, d) in gradients.items():
            block = curvature.blocks[name]
            found = block.quadratic(a, d, DAMPING)
            assert found.shape == positions.shape
            for k in range(len(positions)):
                v = d[:, k].mT @ a[:, k]
                torch.testing.assert_close(found[k], (v * block.solve(v, DAMPING)).sum(), rtol=1e-10, atol=1e-14)


def test_quadratic_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build("conv-stride")
    curvature = fit_curvature(model, rows)
    ((_, gradients),) = layer_gradients(model, rows, "classification", curvature.layers)
    whole = curvature.blocks["0"].quadratic(*gradients["0"], DAMPING)
    monkeypatch.setattr("unlearn.curvature.block._CHUNK_BYTES", 5000)
    assert len(list(curvature.blocks["0"].basis.gradients(*gradients["0"]))) > 2
    torch.testing.assert_close(curvature.blocks["0"].quadratic(*gradients["0"], DAMPING), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize(("case", "room"), [("linear", 1000), ("conv-groups", 4000)])  # bytes: one batch, not all
def test_what_is_kept_between_the_passes_changes_nothing(
    case: str, room: int, fisher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = build(case)
    runs: list[int] = []
    model.register_forward_hook(lambda module, inputs, outputs: runs.append(len(outputs)))
    kept = fit_curvature(model, rows, fisher=fisher, batch_size=4)
    assert runs == [2, 3, 4, 4, 1]  # two probes first
    monkeypatch.setattr("unlearn.curvature.fit._KEEP_BYTES", room)
    streamed = fit_curvature(model, rows, fisher=fisher, batch_size=4)
    assert runs[7:] == [4, 4, 1, 4, 4, 1]
    for name, block in kept.blocks.items():
        assert torch.equal(block.eigenvalues, streamed.blocks[name].eigenvalues)


def test_wide_factors_in_panels_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build("conv-groups")
    whole = fit_curvature(model, rows, kind="kfac")
    monkeypatch.setattr("unlearn.curvature.kronecker._PANEL", 3)
    monkeypatch.setattr("unlearn.curvature.fisher._PART_BYTES", 3000)
    parts = fit_curvature(model, rows, kind="kfac")
    for name, block in whole.blocks.items():
        torch.testing.assert_close(parts.blocks[name].input_factor, block.input_factor, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(parts.blocks[name].output_factor, block.output_factor, rtol=1e-10, atol=1e-13)


def test_uncovered_parameters_come_back_as_zeros() -> None:
    model, rows = build("linear")
    curvature = fit_curvature(model, rows, skip=["0"])
    assert curvature.covered == ["2.weight", "2.bias"]
    v = vector_of(model)
    for found in (curvature.matvec(v), curvature.solve(v, damping=DAMPING)):
        assert list(found) == list(v)
        assert found["0.weight"].abs().sum() == 0
        assert found["2.weight"].abs().sum() > 0
    assert set(curvature.matvec({name: v[name] for name in curvature.covered})) == set(curvature.covered)


def test_damping_and_vectors_are_checked() -> None:
    model, rows = build("conv-stride", n=3)
    curvature = fit_curvature(model, rows)
    v = vector_of(model)
    for damping in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"damping is .*; give a finite number of at least 0"):
            curvature.solve(v, damping=damping)
    dead = fit_curvature(nn.Linear(2, 3), (torch.tensor([[1.0, 0.0]]), torch.tensor([0])), kind="diagonal")
    with pytest.raises(InputError, match=r"layers '' has eigenvalues of 0.*give damping > 0"):
        dead.solve({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, damping=0)
    with pytest.raises(InputError, match=r"lacks the covered parameters '0\.bias'"):
        curvature.matvec({name: part for name, part in v.items() if name != "0.bias"})
    with pytest.raises(InputError, match=r"'0\.wait' of the vector is no parameter of the model; did you mean"):
        curvature.matvec(v | {"0.wait": torch.ones(1)})
    with pytest.raises(InputError, match=r"'0\.bias' of the vector has shape \(5,\); the parameter has shape \(4,\)"):
        curvature.matvec(v | {"0.bias": torch.ones(5)})


def test_check_refuses_other_weights_and_rows() -> None:
    model, rows = build("linear")
    curvature = fit_curvature(model, rows)
    curvature.check(model, rows)
    with pytest.raises(StaleCurvatureError, match="fitted on data"):
        curvature.check(model, rows.without([rows.ids[0]]))
    with torch.no_grad():
        model[0].bias[0] += 1
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        curvature.check(model)


def test_summary_fits_a_terminal_and_names_everything() -> None:
    model, rows = build("conv-groups")
    wide = nn.Sequential()
    wide.add_module("a_module_with_a_name_that_is_longer_than_its_column", model)
    curvature = fit_curvature(wide, rows, skip=["*.3"])
    text = curvature.summary()
    assert max(map(len, text.splitlines())) <= 80
    low, high = (f(curvature.blocks[curvature.layers[0].name].eigenvalues) for f in (torch.min, torch.max))
    for word in ("ekfac", "9 rows", "Conv2d", "2 x 2 x 10", f"{low:.1e}", f"{high:.1e}", "uncovered", "skipped"):
        assert word in text
    eigenvalues = torch.cat([block.eigenvalues.flatten() for block in curvature.blocks.values()])
    assert curvature.mean_eigenvalue == pytest.approx(float(eigenvalues.mean()), rel=1e-12)


def test_negative_eigenvalues_are_clamped_and_counted() -> None:
    rounded = torch.tensor([[[1.0, 1 + 1e-9], [1 + 1e-9, 1.0]]], dtype=torch.float64)
    values, vectors, clamped = eigenbasis(rounded, "A")
    assert (float(values[0, 0]), clamped) == (0.0, 1)
    torch.testing.assert_close(vectors * values[:, None] @ vectors.mT, rounded, rtol=0, atol=2e-9)


def test_dead_inputs_are_eigenvectors_of_eigenvalue_zero() -> None:
    root = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root[0, [1, 4]] = 0  # the groups differ in what is dead
    factor = root @ root.mT
    values, vectors, _ = eigenbasis(factor, "A")
    assert (values.diff(dim=1) >= 0).all()
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(6).double().expand(2, 6, 6), rtol=0, atol=1e-12)
    torch.testing.assert_close(vectors * values[:, None] @ vectors.mT, factor, rtol=0, atol=1e-12)
    nothing, basis, _ = eigenbasis(torch.zeros(1, 3, 3), "A")
    assert nothing.tolist() == [[0.0, 0.0, 0.0]]
    torch.testing.assert_close(basis[0], torch.eye(3))


def test_a_decomposition_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    eigh, calls = torch.linalg.eigh, []

    def fails_once(matrix: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(matrix)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrix)

    factor = torch.diag(torch.tensor([1.0, 2.0]).double())[None]
    monkeypatch.setattr(torch.linalg, "eigh", fails_once)
    values, _, _ = eigenbasis(factor, "A")
    torch.testing.assert_close(values, torch.tensor([[1.0, 2.0]]).double(), rtol=1e-12, atol=0)
    assert len(calls) == 2
    with pytest.raises(InputError, match="the input factor is not finite"):
        eigenbasis(factor * float("inf"), "the input factor")


def test_regression_labels_are_not_read_either() -> None:
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 2).double()
    first, second = (
        fit_curvature(model, (x, torch.full((8, 2), value, dtype=torch.float64)), task=REGRESSION)
        for value in (0.0, 5.0)
    )
    assert torch.equal(first.blocks[""].eigenvalues, second.blocks[""].eigenvalues)
