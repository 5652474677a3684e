import numpy as np
import pytest
import torch

from unlearn.data import Rows
from unlearn.detect import Scores, loss, margin_trajectory
from unlearn.errors import FolderError, InputError
from unlearn.tasks import margins
from unlearn.training import Trajectory


def test_csv_gives_the_same_bits_back(tmp_path):
    # "%.6f" or a float32 on the way would not
    values = np.array([0.1, 1 / 3, -2.5e-310, 1e300, 0.0, np.nextafter(1, 2)])
    ids = ("a", "b,c", 'd"e', "f\ng", "ü\u2028", "7")
    path = tmp_path / "scores.csv"
    Scores(ids, values, "self-influence").save(path)
    back = Scores.load(path)
    assert back.method == "self-influence"
    assert dict(zip(back.ids, back.values.tolist(), strict=True)) == dict(zip(ids, values.tolist(), strict=True))
    assert back.values.dtype == np.float64


def test_csv_is_sorted_and_carries_columns(tmp_path):
    path = tmp_path / "scores.csv"
    Scores(("a", "b"), np.array([1.0, 2.0]), "loss").save(path, {"label": [4, 9]})
    assert path.read_text() == "# unlearn scores 1 loss\nrank,id,score,label\n1,b,2.0,9\n2,a,1.0,4\n"


def test_ties_are_in_the_order_of_ids():
    # not in the order the rows came in
    scores = Scores(("d", "b", "c", "a"), np.array([1.0, 1.0, 2.0, 1.0]), "loss")
    assert [row for row, _ in scores.top(4)] == ["c", "a", "b", "d"]
    assert scores.top(0) == []
    assert len(scores.top(9)) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_its_row(bad):
    with pytest.raises(InputError, match="row 'second' is"):
        Scores(("first", "second"), np.array([0.0, bad]), "loss")


def test_refusals(tmp_path):
    scores = Scores(("a", "b"), np.array([1.0, 2.0]), "loss")
    with pytest.raises(InputError, match="one value for each row"):
        Scores(("a",), np.zeros(2), "loss")
    with pytest.raises(InputError, match="one value for each row"):
        Scores(("a", "b"), np.zeros((2, 1)), "loss")
    with pytest.raises(InputError, match="not unique"):
        Scores(("a", "a"), np.zeros(2), "loss")
    with pytest.raises(InputError, match="k is -1"):
        scores.top(-1)
    with pytest.raises(InputError, match="column 'label' has 1 values for 2 rows"):
        scores.save(tmp_path / "x.csv", {"label": [1]})
    with pytest.raises(FolderError, match="folder"):
        scores.save(tmp_path / "nowhere" / "x.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank,id,score\n1,a,2.0\n", "not a scores file"),
        ("# unlearn scores 2 loss\nrank,id,score\n", "not a scores file"),
        ("# unlearn scores 1 loss\nrank,id\n1,a\n", "is damaged"),
        ("# unlearn scores 1 loss\nrank,id,score\n1,a,x\n", "is damaged"),
        ("# unlearn scores 1 loss\nrank,id,score\n1,a\n", "is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Scores.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="can not be read"):
        Scores.load(tmp_path / "none.csv")


def test_loss_is_at_the_given_label():
    model = torch.nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    scores = loss(model, (torch.eye(2), torch.tensor([0, 0])))
    by_hand = [np.log(1 + np.exp(-1)), np.log(1 + np.exp(2))]
    np.testing.assert_allclose(scores.values, by_hand, rtol=1e-6)
    assert scores.top(1)[0][0] == "1"


LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])


def test_margin_trajectory_is_minus_the_mean_margin():
    # given label 0: margins 2 - 1 = 1 and 0 - 3 = -3; their mean -1 turns into +1, suspicious
    both = margins(LOGITS, torch.tensor([0, 0]))
    assert both.tolist() == [1.0, -3.0]
    mean = Trajectory(("a", "b"), torch.stack([both.mean(), both[0]]), LOGITS, torch.tensor([2, 1]))
    scores = margin_trajectory(mean)
    assert scores.values.tolist() == [1.0, -1.0]
    assert scores.top(1) == [("a", 1.0)]


def test_margin_trajectory_follows_the_order_of_the_data():
    trajectory = Trajectory(("a", "b"), torch.tensor([1.0, 2.0]), LOGITS, torch.ones(2))
    rows = Rows.from_tensors(torch.zeros(2, 1), torch.tensor([0, 0]), ids=["b", "a"])
    assert margin_trajectory(trajectory, rows).values.tolist() == [-2.0, -1.0]
    strange = Rows.from_tensors(torch.zeros(1, 1), torch.tensor([0]), ids=["z"])
    with pytest.raises(InputError, match="1 rows are not in the trajectory: z"):
        margin_trajectory(trajectory, strange)


def test_margin_trajectory_that_is_not_finite_names_the_row():
    trajectory = Trajectory(("a", "b"), torch.tensor([1.0, float("nan")]), LOGITS, torch.ones(2))
    with pytest.raises(InputError, match="row 'b' is nan"):
        margin_trajectory(trajectory)
