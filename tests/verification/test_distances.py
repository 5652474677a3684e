import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax

from unlearn import tasks
from unlearn.errors import InputError
from unlearn.verification.distances import (
    accuracy,
    agreement,
    calibration_error,
    change_cosine,
    jensen_shannon,
    kl,
    linear_cka,
    loss,
    mean_phi,
    phi_error,
    weight_distance,
)
from unlearn.verification.measures import Compared, Group, measure, measure_weights

DRAW = torch.Generator().manual_seed(3)
A, B, C, D = (torch.randn(6, 4, generator=DRAW, dtype=torch.float64) for _ in range(4))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
ROW_CONSTANTS = 10 * torch.randn(6, 1, generator=DRAW, dtype=torch.float64)

MEASURES = {
    "phi_error": lambda a, b: phi_error(a, b, LABELS),
    "kl": kl,
    "jensen_shannon": jensen_shannon,
    "agreement": agreement,
    "accuracy": lambda a, b: accuracy(a, LABELS),
    "loss": lambda a, b: loss(a, LABELS),
    "phi": lambda a, b: mean_phi(a, LABELS),
    "calibration": lambda a, b: calibration_error(a, LABELS),
    "change_cosine": lambda a, b: change_cosine(C, a, b),
}


def test_phi_error_is_a_root_mean_square_of_log_odds():
    # with two classes phi is a difference of logits: rows differ by +3 and -4, so a mean would give -0.5 or 3.5
    a = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert phi_error(a, torch.zeros(2, 2), torch.tensor([0, 0])) == pytest.approx(math.sqrt(12.5))


def test_phi_error_is_taken_at_the_labels():
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 5.0]])
    p, q = a.double().softmax(1)[0], b.double().softmax(1)[0]
    for label in range(3):
        by_hand = (p[label] / (1 - p[label])).log() - (q[label] / (1 - q[label])).log()
        assert phi_error(a, b, torch.tensor([label])) == pytest.approx(abs(float(by_hand)))


def test_kl_runs_from_the_reference():
    reference, model = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    forward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    backward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl(reference, model) == pytest.approx(forward)
    assert kl(model, reference) == pytest.approx(backward)
    assert forward != pytest.approx(backward)


def test_agreement_and_accuracy_count_rows():
    a = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [3.0, 0.0, 1.0]])
    b = torch.tensor([[9.0, 1.0, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 1.0], [3.0, 0.0, 1.0]])
    assert agreement(a, b) == 0.75
    assert accuracy(a, torch.tensor([0, 1, 0, 1])) == 0.5


def test_cosine_is_over_the_whole_group_and_centred():
    base = torch.zeros(2, 2)
    edited, reference = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # centred changes (1.5, -1.5, 0, 0) and (.5, -.5, -.5, .5): one row alone has cosine 1, uncentred gives .7071 too
    assert change_cosine(base, edited, reference) == pytest.approx(math.sqrt(0.5))
    # without centring (3, 0) and (0, -3) would be orthogonal; they are the same change of probabilities
    assert change_cosine(base[:1], torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, -3.0]])) == pytest.approx(1)
    assert change_cosine(base[:1], torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])) == pytest.approx(-1)


def test_no_change_has_cosine_zero():
    assert change_cosine(A, A, B) == 0.0
    assert change_cosine(A, B, A) == 0.0


def test_jensen_shannon_is_scipys_squared_distance():
    p, q = A.softmax(1).numpy(), B.softmax(1).numpy()
    assert jensen_shannon(A, B) == pytest.approx(float((jensenshannon(p, q, axis=1) ** 2).mean()), rel=1e-12)
    assert jensen_shannon(A, B) == pytest.approx(jensen_shannon(B, A), rel=1e-12)
    far = torch.tensor([[800.0, 0.0], [0.0, 800.0]])
    assert jensen_shannon(far, far.flip(1)) == pytest.approx(math.log(2))  # no 0 times infinity


def test_loss_and_phi_are_those_of_scipys_probabilities():
    log_p = log_softmax(A.numpy(), axis=1)
    given = log_p[np.arange(6), LABELS.numpy()]
    assert loss(A, LABELS) == pytest.approx(-given.mean(), rel=1e-12)
    assert mean_phi(A, LABELS) == pytest.approx((given - np.log1p(-np.exp(given))).mean(), rel=1e-9)


def test_calibration_error_by_a_loop_over_bins():
    z = torch.randn(500, 5, generator=DRAW, dtype=torch.float64) * 2
    labels = torch.randint(5, (500,), generator=DRAW)
    p = z.softmax(1).numpy()
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    by_hand = 0.0
    for low in range(10):
        here = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if here.any():  # weighted by the rows of the bin; a plain mean over bins would be another number
            by_hand += here.mean() * abs(right[here].mean() - confidence[here].mean())
    assert calibration_error(z, labels, bins=10) == pytest.approx(by_hand, rel=1e-9)
    sure = torch.tensor([[50.0, 0.0]] * 4)
    assert calibration_error(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)


def cka_by_kernels(x, y):
    """1905.00414, eq. 3: centred kernels, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    n = len(x)
    centre = np.eye(n) - 1 / n

    def hsic(k, l):  # noqa: E741
        return np.trace(k @ centre @ l @ centre) / (n - 1) ** 2

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize("shape", [(30, 4, 7), (5, 12, 9)], ids=["more rows", "more columns"])
def test_cka_is_the_alignment_of_centred_kernels(shape):
    n, i, j = shape
    x = torch.randn(n, i, generator=DRAW, dtype=torch.float64) + 3  # without centring the constant would dominate
    y = x @ torch.randn(i, j, generator=DRAW, dtype=torch.float64) + torch.randn(n, j, generator=DRAW) - 5
    assert linear_cka(x, y) == pytest.approx(cka_by_kernels(x.numpy(), y.numpy()), rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(i, i, generator=DRAW, dtype=torch.float64))[0]
    assert linear_cka(x, -2 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, torch.ones(n, j)) == 0
    with pytest.raises(InputError, match="compute both on the same rows"):
        linear_cka(x, y[1:])


def test_weights_are_one_long_vector():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    flat = [torch.cat([p.detach().flatten().double() for p in m.parameters()]) for m in (a, b)]
    weights = [dict(m.named_parameters()) for m in (a, b)]
    assert weight_distance(*weights) == pytest.approx(float((flat[0] - flat[1]).norm()))
    with pytest.raises(InputError, match="other parameters"):
        weight_distance(weights[0], dict(torch.nn.Linear(3, 3).named_parameters()))


def test_activations_and_weights_stand_beside_their_floor():
    wide = Compared(A, B, None, [C, D, A + B])
    rows = rows_of(Group("test", LABELS, LABELS, A, B, C, [D], activations=wide))
    floor = np.mean([linear_cka(C, D), linear_cka(C, A + B), linear_cka(D, A + B)])
    assert rows["cka", "edited"]["floor"] == pytest.approx(floor)
    assert rows["cka", "unedited"]["value"] == pytest.approx(np.mean([linear_cka(B, z) for z in wide.independent]))
    found = {row["model"]: row for row in measure_weights(wide.map(lambda z: {"w": z}))}
    assert found["edited"]["value"] == pytest.approx(np.mean([float((A - z).norm()) for z in wide.independent]))
    assert found["edited"]["floor"] == pytest.approx(
        np.mean([float((a - b).norm()) for a, b in [(C, D), (C, A + B), (D, A + B)]])
    )


@pytest.mark.parametrize("name", MEASURES)
def test_a_constant_per_row_changes_nothing(name):
    distance = MEASURES[name]
    assert distance(A + ROW_CONSTANTS, B - 2 * ROW_CONSTANTS) == pytest.approx(distance(A, B), rel=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_arrays_and_tensors_of_any_precision_agree(name):
    distance = MEASURES[name]
    assert distance(A.numpy(), B.numpy()) == distance(A, B)
    assert distance(A.float().requires_grad_(), B) == pytest.approx(distance(A, B), abs=1e-5)


def test_equal_models_have_no_distance():
    assert phi_error(A, A, LABELS) == 0
    assert kl(A, A) == 0
    assert agreement(A, A) == 1


@pytest.mark.parametrize(
    ("a", "b", "labels", "message"),
    [
        (A, B[:3], LABELS, "compute both on the same rows"),
        (A[:0], B[:0], LABELS[:0], "at least one row"),
        (A[:, :1], B[:, :1], LABELS, "two classes"),
        (A.where(A < 1, torch.nan), B, LABELS, "NaN or infinite"),
        (A, B, LABELS[:4], "give 6 integers"),
        (A, B, LABELS.double(), "give 6 integers"),
        (A, B, LABELS + 3, "outside the 4 classes"),
        (A, B, LABELS - 1, "outside the 4 classes"),
        (A.tolist(), B, LABELS, "give a tensor or an array"),
    ],
)
def test_what_does_not_fit_is_refused(a, b, labels, message):
    with pytest.raises(InputError, match=message):
        phi_error(a, b, labels)


def rows_of(group):
    return {(row["measure"], row["model"]): row for row in measure(group)}


def test_measure_sets_each_model_against_the_coupled_retrain_and_the_floor():
    retrains = [A, B, C]
    changed = LABELS.roll(1)
    group = Group("changed", LABELS, changed, A + 1, D, A * 0.5, retrains, {"finetune": B * 0.3})
    rows = rows_of(group)
    pairs = [(A, B), (A, C), (B, C)]

    row = rows["phi_error", "finetune"]
    pooled = torch.cat([tasks.phi(a, changed) - tasks.phi(b, changed) for a, b in pairs])
    assert row["value"] == pytest.approx(phi_error(B * 0.3, A * 0.5, changed))
    assert row["floor"] == pytest.approx(float(pooled.square().mean().sqrt()))
    assert row["ratio"] == pytest.approx(row["value"] / row["floor"])
    assert (row["group"], row["reference"]) == ("changed", "coupled")

    row = rows["kl", "edited"]
    assert row["value"] == pytest.approx(kl(A * 0.5, D))
    assert row["floor"] == pytest.approx(np.mean([kl(a, b) + kl(b, a) for a, b in pairs]) / 2)

    row = rows["agreement", "edited"]
    assert row["floor"] == pytest.approx(np.mean([agreement(a, b) for a, b in pairs]))

    row = rows["change_cosine", "edited"]
    assert row["value"] == pytest.approx(change_cosine(A + 1, D, A * 0.5))
    assert row["floor"] == pytest.approx(np.mean([change_cosine(A + 1, a, b) for a, b in pairs]))
    assert rows["change_cosine", "unedited"]["value"] == 0.0

    assert rows["accuracy", "independent"]["value"] == pytest.approx(np.mean([accuracy(z, LABELS) for z in retrains]))
    assert rows["accuracy", "coupled"]["value"] == accuracy(A, LABELS)

    row = rows["accuracy", "edited"]
    by_itself = [accuracy(z, LABELS) for z in retrains]
    assert row["floor"] == pytest.approx(np.mean([abs(a - b) for k, a in enumerate(by_itself) for b in by_itself[:k]]))
    assert row["ratio"] == pytest.approx(abs(accuracy(D, LABELS) - accuracy(A * 0.5, LABELS)) / row["floor"])
    assert len(rows) == 3 * 5 + 5 * 4


def test_mean_and_spread_are_over_the_independent_retrains():
    """Also where the value is the distance to the coupled one."""
    retrains = [A, B, C]
    rows = rows_of(Group("changed", LABELS, LABELS, A + 1, D, A * 0.5, retrains))
    row = rows["kl", "edited"]
    each = [kl(z, D) for z in retrains]
    assert row["value"] == pytest.approx(kl(A * 0.5, D))
    assert (row["independent"], row["spread"]) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    each = [phi_error(z, D, LABELS) for z in retrains]
    row = rows["phi_error", "edited"]
    assert (row["independent"], row["spread"]) == pytest.approx(
        (np.sqrt(np.mean(np.square(each))), np.std(each, ddof=1))
    )
    each = [loss(z, LABELS) for z in retrains]
    row = rows["loss", "edited"]
    assert (row["independent"], row["spread"]) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert row["value"] == pytest.approx(loss(D, LABELS))
    alone = rows_of(Group("changed", LABELS, LABELS, A + 1, D, None, [A]))["kl", "edited"]
    assert alone["value"] == alone["independent"]
    assert alone["spread"] is alone["floor"] is None


def test_without_a_model_before_there_is_no_change():
    rows = rows_of(Group("given", LABELS, LABELS, None, A, None, [B, C]))
    assert {model for _, model in rows} == {"edited", "independent"}
    assert "change_cosine" not in {name for name, _ in rows}
    assert rows["kl", "edited"]["value"] == pytest.approx((kl(B, A) + kl(C, A)) / 2)


def test_without_a_coupled_retrain_distances_are_to_the_independent_ones():
    rows = rows_of(Group("test", LABELS, LABELS, A, B, None, [C, D]))
    pooled = math.sqrt((phi_error(B, C, LABELS) ** 2 + phi_error(B, D, LABELS) ** 2) / 2)
    assert rows["phi_error", "edited"]["reference"] == "independent"
    assert rows["phi_error", "edited"]["value"] == pytest.approx(pooled)
    assert rows["kl", "edited"]["value"] == pytest.approx((kl(C, B) + kl(D, B)) / 2)
    assert ("accuracy", "coupled") not in rows


def test_fewer_than_two_retrains_give_no_floor():
    rows = rows_of(Group("test", LABELS, LABELS, A, B, C, [D]))
    assert rows["kl", "edited"]["floor"] is rows["kl", "edited"]["ratio"] is None
    assert {name for name, _ in rows_of(Group("test", LABELS, LABELS, A, B))} == {
        "accuracy", "loss", "phi", "calibration"
    }  # fmt: skip


def test_a_floor_of_zero_gives_no_ratio():
    rows = rows_of(Group("test", LABELS, LABELS, A, B, C, [D, D]))
    assert rows["kl", "edited"]["floor"] == 0
    assert rows["kl", "edited"]["ratio"] is None


def test_measure_names_what_does_not_fit():
    with pytest.raises(InputError, match=r"independent\[1\] has shape \(3, 4\)"):
        measure(Group("test", LABELS, LABELS, A, B, C, [C, D[:3]]))
    with pytest.raises(InputError, match="give it another name"):
        measure(Group("test", LABELS, LABELS, A, B, C, [], {"edited": D}))
