import pytest
import torch

from unlearn.data import Rows, symmetric_noise
from unlearn.detect import suggest_labels
from unlearn.errors import InputError
from unlearn.training import Trajectory

LOGITS = torch.tensor([[5.0, 1.0, 2.0], [0.0, 4.0, 3.0]])
ROWS = Rows.from_tensors(torch.zeros(2, 1), torch.tensor([0, 0]), ids=["a", "b"], classes=3)


def test_the_best_class_but_the_given_one():
    # the plain argmax would give the given label back
    assert suggest_labels(ROWS, logits=LOGITS) == {"a": 2, "b": 1}


def test_the_trajectory_goes_before_the_logits_and_by_id():
    means = torch.tensor([[0.0, 7.0, 1.0], [0.0, 1.0, 7.0]])
    trajectory = Trajectory(("b", "a"), torch.zeros(2), means, torch.ones(2))
    assert suggest_labels(ROWS, trajectory=trajectory, logits=LOGITS) == {"a": 2, "b": 1}
    assert suggest_labels(ROWS.only(["b"]), trajectory=trajectory) == {"b": 1}


def test_the_truth_is_never_read():
    draw = torch.Generator().manual_seed(0)
    rows = Rows.from_tensors(torch.zeros(50, 1), torch.randint(3, (50,), generator=draw), classes=3)
    noisy, logits = symmetric_noise(rows, 0.4, seed=0), torch.randn(50, 3, generator=draw)
    other = noisy.with_truth(noisy.truth[torch.randperm(50, generator=draw)])
    assert suggest_labels(noisy, logits=logits) == suggest_labels(other, logits=logits)
    assert suggest_labels(noisy, logits=logits) == suggest_labels(noisy.with_truth(None), logits=logits)


def test_refusals():
    with pytest.raises(InputError, match="need a trajectory or logits"):
        suggest_labels(ROWS)
    trajectory = Trajectory(("a",), torch.zeros(1), LOGITS[:1], torch.ones(1))
    with pytest.raises(InputError, match="1 rows are not in the trajectory: b"):
        suggest_labels(ROWS, trajectory=trajectory)
    for logits in (LOGITS[:1], LOGITS[:, :1], LOGITS[0]):
        with pytest.raises(InputError, match="give \\(rows, classes\\)"):
            suggest_labels(ROWS, logits=logits)
    with pytest.raises(InputError, match="NaN or infinite"):
        suggest_labels(ROWS, logits=LOGITS * float("nan"))
    numbers = Rows.from_tensors(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(InputError, match="for classes only"):
        suggest_labels(numbers, logits=LOGITS)
