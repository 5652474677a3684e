"""Rows: ids, views, fingerprints. Each test names the wrong behaviour it rejects."""

from __future__ import annotations

import pytest
import torch

from unlearn.data import Rows
from unlearn.errors import InputError, RowNotFoundError


def rows_of(n: int = 12, classes: int = 3) -> Rows:
    inputs = torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(0))
    return Rows.from_tensors(inputs, torch.arange(n) % classes, ids=[f"row-{i}" for i in range(n)])


def storage(rows: Rows) -> int:
    return rows._source.tensors.data_ptr()  # type: ignore[attr-defined]


def test_a_row_keeps_its_id_input_and_label_through_chains_of_views():
    # rejects positions that are taken of the view in one place and of the storage in another
    rows = rows_of()
    view = rows.at(torch.tensor([7, 3, 11, 0, 5])).without(["row-3"]).relabelled({"row-0": 2}).only(["row-0", "row-11"])
    view = view.without(["row-11"])
    assert view.ids == ("row-0",)
    assert torch.equal(view[0][0], rows[0][0])
    assert (int(view[0][1]), int(rows[0][1])) == (2, 0)


def test_ids_mean_the_same_rows_after_shuffling_splitting_and_removal():
    # rejects ids that are row numbers of the view
    rows = rows_of()
    shuffled = rows.at(torch.randperm(12, generator=torch.Generator().manual_seed(1)))
    for view in (shuffled, shuffled.at(torch.arange(3, 9)), shuffled.without(shuffled.ids[:4])):
        for i, row in enumerate(view.ids):
            original = int(row.removeprefix("row-"))
            assert torch.equal(view[i][0], rows[original][0])
            assert view[i][1] == rows[original][1]


def test_views_copy_no_inputs():
    # rejects views that materialise their inputs
    rows = rows_of()
    views = [rows.without(["row-1"]), rows.only(["row-2"]), rows.relabelled({"row-3": 0}), rows.with_truth(rows.labels)]
    for view in [*views, views[0].relabelled({"row-2": 0}).without(["row-4"])]:
        assert view._source is rows._source
        assert storage(view) == storage(rows)


def test_views_leave_the_original_as_it_was():
    # rejects relabelling in place
    rows = rows_of()
    before = rows.fingerprint, rows.labels.clone(), rows.ids
    rows.relabelled({"row-0": 2})
    rows.without(["row-0"])
    fresh = rows.at(torch.arange(12))
    assert (fresh.fingerprint, rows.ids) == (before[0], before[2])
    assert torch.equal(rows.labels, before[1])


def test_fingerprint_is_of_contents_and_not_of_order_or_route():
    rows = rows_of()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    assert rows.at(order).fingerprint == rows.fingerprint
    one = rows.without(["row-1", "row-2"]).relabelled({"row-5": 0})
    two = rows.relabelled({"row-5": 0}).without(["row-2"]).at(torch.arange(10, -1, -1)).without(["row-1"])
    built = Rows.from_tensors(torch.stack([x for x, _ in one]), one.labels, ids=one.ids, classes=3)
    assert one.fingerprint == two.fingerprint == built.fingerprint != rows.fingerprint


def test_fingerprint_changes_with_one_pixel_one_label_one_id_or_the_shape():
    # rejects fingerprints of ids alone, of inputs alone, or of unframed bytes
    rows = rows_of()
    inputs, labels = rows.batch(torch.arange(12))
    pixel = inputs.clone()
    pixel[4, 1, 2] += 1e-6
    others = [
        Rows.from_tensors(pixel, labels, ids=rows.ids),
        rows.relabelled({"row-4": 0}),
        Rows.from_tensors(inputs, labels, ids=[*rows.ids[:-1], "row-12"]),
        Rows.from_tensors(inputs.reshape(12, 3, 2), labels, ids=rows.ids),
        Rows.from_tensors(inputs, labels, ids=[rows.ids[3], *rows.ids[1:3], rows.ids[0], *rows.ids[4:]]),
    ]
    assert len({rows.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_truth_is_no_part_of_the_fingerprint_and_follows_the_views():
    # rejects a truth that is indexed by position of the whole data
    rows = rows_of()
    known = rows.relabelled({"row-4": 0}).with_truth(rows.labels)
    assert known.fingerprint == rows.relabelled({"row-4": 0}).fingerprint
    view = known.without(["row-0"]).only(["row-5", "row-4"])
    assert view.truth is not None
    assert view.truth.tolist() == [2, 1]
    assert view.relabelled({"row-4": 2}).truth.tolist() == [2, 1]  # type: ignore[union-attr]


def test_negative_index_counts_from_the_end_and_iteration_ends():
    rows = rows_of().without(["row-11"])
    assert torch.equal(rows[-1][0], rows[10][0])
    assert len(list(rows)) == 11
    with pytest.raises(IndexError):
        rows[11]


def test_batches_cover_all_rows_once_in_order():
    rows = rows_of().without(["row-2"])
    seen = list(rows.batches(4))
    assert torch.cat([p for p, _, _ in seen]).tolist() == list(range(11))
    assert torch.equal(torch.cat([x for _, x, _ in seen]), torch.stack([x for x, _ in rows]))
    assert torch.equal(torch.cat([y for _, _, y in seen]), rows.labels)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_input_is_named_by_its_id_in_a_view(bad: float):
    # rejects naming the position in the batch or in the storage
    inputs = torch.ones(6, 4)
    inputs[4, 2] = bad
    rows = Rows.from_tensors(inputs, torch.zeros(6).long(), ids=list("abcdef")).without(["b"])
    with pytest.raises(InputError, match=r"NaN or infinite in rows e; "):
        rows.batch(torch.tensor([0, 3]))
    assert len(rows.batch(torch.tensor([0, 2]))[0]) == 2


def test_infinities_of_both_signs_do_not_hide_and_large_numbers_are_no_infinities():
    # rejects looking at the sum alone, which overflows
    labels = torch.zeros(2).long()
    both = Rows.from_tensors(torch.tensor([[float("inf")], [-float("inf")]]), labels)
    with pytest.raises(InputError, match="rows 0, 1"):
        both.batch(torch.tensor([0, 1]))
    large = torch.full((2, 2), 3e38)
    assert torch.equal(Rows.from_tensors(large, labels).batch(torch.tensor([0, 1]))[0], large)


def test_bad_construction_is_refused():
    x, y = torch.zeros(3, 2), torch.tensor([0, 1, 2])
    with pytest.raises(InputError, match=r"not unique: a named twice"):
        Rows.from_tensors(x, y, ids=["a", "b", "a"])
    with pytest.raises(InputError, match="3 rows and 2 ids"):
        Rows.from_tensors(x, y, ids=["a", "b"])
    with pytest.raises(InputError, match="3 inputs and 2 labels"):
        Rows.from_tensors(x, y[:2])
    with pytest.raises(InputError, match="0 inputs and 0 labels"):
        Rows.from_tensors(x[:0], y[:0])
    with pytest.raises(InputError, match=r"label 2 of row '2' is outside the classes 0\.\.1"):
        Rows.from_tensors(x, y, classes=2)
    with pytest.raises(InputError, match="label -1 of row '1'"):
        Rows.from_tensors(x, torch.tensor([0, -1, 1]))
    with pytest.raises(InputError, match="labels of data are not finite in rows b"):
        Rows.from_tensors(x, torch.tensor([0.0, float("nan"), 1.0]), ids=list("abc"))
    with pytest.raises(InputError, match="shape"):
        Rows.from_tensors(x, torch.zeros(3, 1).long())
    with pytest.raises(InputError, match=r"float32 but 2 classes are stated"):
        Rows.from_tensors(x, torch.zeros(3), classes=2)


def test_bad_ids_are_refused_and_named():
    rows = rows_of(3)
    for view in (rows.without, rows.only, lambda ids: rows.relabelled(dict.fromkeys(ids, 0))):
        with pytest.raises(RowNotFoundError, match=r"1 of 2 ids not in data: 'row-9'; its ids look like 'row-0'"):
            view(["row-1", "row-9"])
    with pytest.raises(LookupError):
        rows.without(["row-9"])
    with pytest.raises(InputError, match="named twice"):
        rows.without(["row-1", "row-1"])
    with pytest.raises(InputError, match="all 3 rows"):
        rows.without(rows.ids)
    assert rows.without([]).ids == rows.ids
    assert rows.without("row-1").ids == ("row-0", "row-2")  # not the letters of the id


@pytest.mark.parametrize("label", [3, -1, 1.5, float("nan"), float("inf"), "two"])
def test_a_label_outside_the_classes_is_refused(label: object):
    # rejects a bare ValueError or OverflowError of int()
    with pytest.raises(InputError, match=r"for row 'row-1' is outside the classes 0\.\.2"):
        rows_of().relabelled({"row-1": label})  # type: ignore[dict-item]


def test_relabelling_takes_labels_in_any_order_and_number_type():
    rows = rows_of()
    assert rows.relabelled({"row-5": 0, "row-0": torch.tensor(1)}).labels[[0, 5]].tolist() == [1, 0]
    assert rows.relabelled({"row-5": 1.0}).labels.dtype == torch.int64
    assert rows.relabelled({}).fingerprint == rows.fingerprint


def test_regression_labels_of_one_and_several_outputs():
    # rejects broadcasting two rows' labels over two outputs
    one = Rows.from_tensors(torch.zeros(3, 2), torch.tensor([0.5, 1.5, 2.5]))
    assert one.classes is None
    assert one.relabelled({"1": -7.25}).labels.tolist() == [0.5, -7.25, 2.5]
    two = Rows.from_tensors(torch.zeros(3, 2), torch.zeros(3, 2))
    assert two.relabelled({"0": [1.0, 2.0], "2": [3.0, 4.0]}).labels.tolist() == [[1, 2], [0, 0], [3, 4]]
    with pytest.raises(InputError, match=r"of shape \(2,\)"):
        two.relabelled({"0": 1.0, "2": 2.0})
    with pytest.raises(InputError, match="finite"):
        one.relabelled({"1": float("nan")})
