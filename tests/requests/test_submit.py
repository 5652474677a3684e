"""Submitting: one request is one request, names become codes, and what is not held is an answer."""

from __future__ import annotations

import pytest

from unlearn.errors import InputError, LedgerError, RowNotFoundError
from unlearn.requests import Desk, audit, audit_passes, cancel, content_hashes, make_keys, submit


def test_a_request_is_written_down_with_codes_only(desk, keys, customers, folder):
    rows = desk.run.data
    mine = [row for row in rows.ids if int(row[-4:]) % 500 == 88]
    done = submit(desk, subjects=["customer=88"], subject_file=customers, reason="letter of Jane Doe")
    assert done.new
    assert done.request.name == "R-0001"
    assert set(done.request.rows) == {keys.code("row", row) for row in mine}
    assert (done.request.received, done.request.due) == ("2026-03-01", "2026-03-31")
    desk.ledger.close()
    raw = b"".join(file.read_bytes() for file in (folder / "requests").iterdir() if file.is_file())
    assert len(raw) > 1000
    for secret in (b"Jane", b"customer", b"=88", *(row.encode() for row in mine)):
        assert secret not in raw


def test_the_same_request_twice_is_one(desk, customers):
    rows = [row for row in desk.run.data.ids if int(row[-4:]) % 500 == 88]
    first = submit(desk, subjects=["customer=88"], subject_file=customers)
    again = submit(desk, ids=reversed(rows), reason="asked by phone")  # the same rows by other names
    assert (first.new, again.new) == (True, False)
    assert again.request.number == 1
    assert again.request.times == 2
    assert not submit(desk, ids=[*rows, rows[0]]).new
    assert submit(desk, ids=rows[:1]).new  # other rows
    assert submit(desk, ids=rows, action="relabel", label=0).new  # another action
    assert submit(desk, ids=rows, action="relabel", label=1).new  # another label
    assert [event.kind for event in desk.ledger.events()].count("submitted") == 4


def test_a_cancelled_request_can_be_made_again(desk):
    rows = desk.run.data.ids
    submit(desk, ids=[rows[0]])
    with pytest.raises(InputError, match="for a reason"):
        cancel(desk, 1, reason="")
    assert cancel(desk, 1, reason="withdrawn").status == "cancelled"
    with pytest.raises(InputError, match="R-0001 is cancelled; only a request that waits"):
        cancel(desk, 1, reason="twice")
    again = submit(desk, ids=[rows[0]])
    assert again.new
    assert again.request.number == 2
    assert not submit(desk, ids=[rows[0]]).new
    assert audit_passes(audit(desk.run.folder))


def test_what_is_not_held_is_recorded(desk, keys, customers):
    row = desk.run.data.ids[0]
    done = submit(
        desk, ids=[row, "digits-9999"], subjects=["customer=nobody"], hashes=["0" * 64], subject_file=customers
    )
    assert set(done.request.rows) == {keys.code("row", row)}
    assert set(done.request.not_held) == {
        ("id", keys.code("row", "digits-9999")),
        ("subject", keys.code("subject", "customer=nobody")),
        ("hash", keys.code("hash", "0" * 64)),
    }
    nothing = submit(desk, ids=["digits-9999"])
    assert nothing.new
    assert nothing.request.rows == {}


def test_rows_by_content_hash_are_all_copies(desk, keys):
    row = desk.run.data.ids[5]
    digest = content_hashes(desk.run.data)[row]
    done = submit(desk, hashes=[digest.upper()])
    assert keys.code("row", row) in done.request.rows


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("{0}\n{1}\n", [None, None]),
        ("id\n{0}\n{1}\n", [None, None]),
        ("\ufeffid,label\n{0},3\n{1},4\n", [3, 4]),
        ('label,id\n3,"{0}"\n4,{1}\n', [3, 4]),
    ],
)
def test_files(desk, keys, tmp_path, text, labels):
    rows = [row for row, label in zip(desk.run.data.ids, desk.run.data.labels.tolist(), strict=True) if label > 4][:2]
    path = tmp_path / "letter.csv"
    path.write_text(text.format(*rows), encoding="utf-8")
    done = submit(desk, file=path, action="remove" if labels[0] is None else "relabel")
    assert done.request.rows == {keys.code("row", row): label for row, label in zip(rows, labels, strict=True)}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "names no row"),
        ({"ids": "digits-0001"}, "ids is the string"),
        ({"ids": [""]}, "an empty id"),
        ({"subjects": ["customer"]}, "is not COLUMN=VALUE"),
        ({"hashes": ["abc"]}, "no content hash: 64 hex digits"),
        ({"ids": ["a"], "action": "forget"}, "unknown action 'forget'; known: relabel, remove"),
        ({"ids": ["a"], "label": 3}, "a label is given, and the action is remove"),
        ({"ids": ["digits-0001"], "action": "relabel"}, "relabel needs a label"),
        ({"ids": ["a"], "received": "yesterday"}, "write the date as 2026-03-01"),
        ({"ids": ["a"], "received": "2026-03-02"}, "after today"),
        ({"ids": ["a"], "due": "2026-02-01"}, "before the letter came"),
        ({"subjects": ["customer=1"]}, "no subject file"),
        ({"file": "nowhere.csv"}, "can not read"),
    ],
)
def test_what_can_not_be_meant_is_refused_and_nothing_is_written(desk, options, line):
    count = desk.state().count
    with pytest.raises(InputError, match=line):
        submit(desk, **options)
    assert desk.ledger.last().number == count


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("id,name\na,b\n", "has the columns"),
        ("id,id\na,b\n", "each once"),
        ("id,hash\na,b\n", "line 2: name one of"),
        ("id,label\na,x\n", "no finite number"),
        ("id,label\na,inf\n", "no finite number"),
        ("id\na,b,c\n", "line 2: name one of"),
    ],
)
def test_wrong_files_name_the_line(desk, tmp_path, text, line):
    path = tmp_path / "letter.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=line):
        submit(desk, file=path, action="relabel")


def test_a_label_outside_the_classes_and_an_unknown_column(desk, customers):
    row = desk.run.data.ids[0]
    with pytest.raises(InputError, match="outside the classes"):
        submit(desk, ids=[row], action="relabel", label=12)
    with pytest.raises(InputError, match="no column 'name'; it has customer"):
        submit(desk, subjects=["name=x"], subject_file=customers)


def test_due_dates_and_overdue(desk, clock):
    item = submit(desk, ids=["a"], received="2026-02-01").request
    assert item.due == "2026-03-03"
    assert not item.overdue(desk.today)
    clock.pass_days(3)
    assert item.overdue(desk.today)


def test_another_row_key_is_refused(desk, folder, tmp_path):
    submit(desk, ids=["a"])
    with pytest.raises(LedgerError, match="was written with row key"):
        Desk.open(folder, keys=make_keys(tmp_path / "other"), who="dpo")
    with Desk.open(folder, who="dpo") as blind:
        assert len(blind.state().requests) == 1
        with pytest.raises(LedgerError, match="needs the row key"):
            submit(blind, ids=["a"])


@pytest.mark.parametrize("who", ["", "x" * 201, "a\ud800"])
def test_names_that_can_not_be_noted(folder, keys, who):
    with pytest.raises(InputError, match="operator's name"):
        Desk.open(folder, keys=keys, who=who, create=True)


def test_rows_of_the_data_are_found_by_code(desk):
    row = desk.run.data.ids[3]
    done = submit(desk, ids=[row])
    assert [desk.id_of[code] for code in done.request.rows] == [row]
    with pytest.raises(RowNotFoundError):
        desk.run.data.positions(["digits-9999"])


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\u202eabc", "'; DROP TABLE events; --", "x" * 1_000_000, "=1+1"])
def test_any_text_is_an_id_that_is_not_held_and_a_reason_that_is_a_code(desk, keys, text, tmp_path):
    done = submit(desk, ids=[text], hashes=["0" * 64], reason=text)
    assert ("id", keys.code("row", text)) in done.request.not_held
    assert done.request.reason == keys.code("reason", text)
    assert not submit(desk, ids=[text], hashes=["0" * 64]).new
    for options in ({"hashes": [text]}, {"subjects": [text]}, {"file": text}, {"ids": ["a"], "received": text}):
        with pytest.raises(InputError) as caught:
            submit(desk, **options)
        assert len(str(caught.value)) < 1000
    assert [event.kind for event in desk.ledger.events()] == ["opened", "submitted", "repeated"]
    assert audit_passes(audit(desk.run.folder))
