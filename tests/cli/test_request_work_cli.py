"""``unlearn request process | approve | refuse | rollback | purge | certificate``: what is printed, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from test_request_cli import NASTY, check_shown

from unlearn.pipeline import Run

ANYTHING = ("--reason", "seen", "--by", "dpo")


@pytest.fixture
def run(run_copy: Path, tmp_path: Path, unlearn, monkeypatch) -> Path:
    """A trained run with keys and one request that waits; its two references decide nothing, so edits are held."""
    monkeypatch.setenv("UNLEARN_KEYS", str(tmp_path / "keys"))
    assert unlearn("request", "keygen", tmp_path / "keys")[0] == 0
    row = Run.open(run_copy).data.ids[0]
    assert unlearn("request", "submit", run_copy, "--id", row, "--by", "dpo")[0] == 0
    return run_copy


def one_line(result, line):
    """Assert that a command failed with one clear line that says this."""
    code, out, err = result
    assert code == 2, (out, err)
    assert line in " ".join(err.split())
    assert len(err.strip().splitlines()) == 1 or "Usage" in err
    assert "Traceback" not in out + err


def test_keygen_never_overwrites_and_stays_out_of_runs(run, unlearn, tmp_path):
    code, out, _ = unlearn("request", "keygen", tmp_path / "more")
    assert code == 0
    assert "mode 0600" in out
    assert (tmp_path / "more" / "signing.pub").exists()
    one_line(unlearn("request", "keygen", tmp_path / "more"), "never overwritten")
    one_line(unlearn("request", "keygen", run / "keys"), "inside the run")
    one_line(unlearn("request", "keygen", tmp_path / ("x" * 300)), "File name too long; check the path")


def test_held_approved_certified_purged(run, unlearn, tmp_path):
    code, out, _ = unlearn("request", "process", run, "--by", "dpo")
    assert code == 3
    assert "batch 1: edit" in out
    assert "verification: undecided; held" in out
    assert "it waits for `unlearn request approve` or `refuse`" in out
    code, out, _ = unlearn("request", "process", run, "--json")
    assert (code, json.loads(out)["held"]) == (3, True)
    _, out, _ = unlearn("request", "status", run)
    assert "batch 1 waits for `approve` or `refuse`" in out
    assert json.loads(unlearn("request", "status", run, "--json")[1])["waits_for_a_person"] == 1
    one_line(unlearn("request", "purge", run, "--yes"), "batch 1 is held; approve or refuse it first")
    one_line(unlearn("request", "rollback", run, 0, *ANYTHING), "batch 1 is held")

    one_line(unlearn("request", "approve", run, "R-0001"), "approved for a reason; give one with --reason")
    one_line(unlearn("request", "approve", run, "R-0007", *ANYTHING), "there is no request R-0007")
    one_line(unlearn("request", "approve", run, "first", *ANYTHING), "'first' is no request; write its number")
    code, out, _ = unlearn("request", "approve", run, "1", *ANYTHING)
    assert (code, out.splitlines()) == (0, ["R-0001: approved", "released model: batch 1"])
    one_line(unlearn("request", "approve", run, "1", *ANYTHING), "R-0001 is released; only what is held")
    code, out, _ = unlearn("request", "process", run)
    assert (code, out) == (0, "nothing waits\n")

    check_certificate(run, unlearn, tmp_path)
    check_purge(run, unlearn)
    assert unlearn("request", "audit", run)[0] == 0


def check_certificate(run, unlearn, tmp_path):
    path = next((run / "requests" / "certificates").glob("R-0001-*.json"))
    code, out, _ = unlearn("request", "certificate", "show", path)
    assert code == 0
    for part in ("request: R-0001: released", "verdict: verification: undecided", "bound: no bound", "not proved: "):
        assert part in out
    assert "membership audit: none was made" in out
    assert max(map(len, out.splitlines())) <= 80 + len("after: sha256 ")  # a digest is not broken
    assert json.loads(unlearn("request", "certificate", "show", path, "--json")[1])["request"] == "R-0001"
    public = tmp_path / "keys" / "signing.pub"
    code, out, _ = unlearn("request", "certificate", "verify", path, "--public-key", public)
    assert code == 0
    assert "It holds." in out
    outside = tmp_path / "R-0001.json"
    outside.write_text(path.read_text().replace('"undecided"', '"pass"', 1))
    code, out, _ = unlearn("request", "certificate", "verify", outside, "--run", run)
    assert code == 1
    assert "It does not hold: signature" in " ".join(out.split())
    assert not json.loads(unlearn("request", "certificate", "verify", outside, "--json")[1])["holds"]
    outside.write_text("{}")
    one_line(unlearn("request", "certificate", "show", outside), "is damaged or altered")
    one_line(unlearn("request", "certificate", "show", tmp_path / "no.json"), "can not read certificate")
    code, out, _ = unlearn("request", "certificate", "verify", tmp_path / "no.json")
    assert code == 1
    assert "form" in out
    one_line(unlearn("request", "certificate", "verify", path, "--public-key", outside), "can not read public key")


def check_purge(run, unlearn):
    one_line(unlearn("request", "purge", run, "--destroy-key"), "give --yes with it")
    code, out, _ = unlearn("request", "purge", run)
    assert code == 0
    assert "would be removed: " in out
    assert "  report.html" in out
    assert "kept until its retention ends: 1" in out
    assert "source data set" in out
    assert (run / "report.html").exists()
    listed = json.loads(unlearn("request", "purge", run, "--json")[1])
    assert listed["removed"] is False
    one_line(unlearn("request", "purge", run, "--yes", "--destroy-key"), "1 deleted rows are still in the source data")
    code, out, _ = unlearn("request", "purge", run, "--yes")
    assert code == 0
    assert not [item["path"] for item in listed["removes"] if (run / item["path"]).exists()]
    assert "would be removed: nothing" in unlearn("request", "purge", run)[1]


def test_refused_retrained_rolled_back(run, unlearn):
    assert unlearn("request", "process", run)[0] == 3
    one_line(unlearn("request", "refuse", run, 1), "refused for a reason")
    code, out, _ = unlearn("request", "refuse", run, 1, *ANYTHING)
    assert code == 0
    assert "answers it by a retrain" in out
    code, out, _ = unlearn("request", "process", run)
    assert code == 0
    assert "batch 2: retrain, 5.00 training epochs; retrain: pass; closed" in out
    one_line(unlearn("request", "rollback", run, 0, *ANYTHING), "say so (--knows-deleted)")
    one_line(unlearn("request", "rollback", run, 7, *ANYTHING, "--knows-deleted"), "no earlier model 7 to go back to")
    one_line(unlearn("request", "rollback", run, "zero", *ANYTHING), "'zero' is not a valid integer")
    one_line(unlearn("request", "rollback", run, 0, "--knows-deleted"), "rolled back for a reason")
    code, out, _ = unlearn("request", "rollback", run, 0, *ANYTHING, "--knows-deleted")
    assert (code, out) == (0, "released model: the original; 1 requests wait again\n")
    one_line(unlearn("request", "cancel", run, 1), "cancelled for a reason")
    assert unlearn("request", "cancel", run, 1, *ANYTHING)[0] == 0
    code, out, _ = unlearn("request", "process", run, "--retrain")  # the scheduled one
    assert code == 0
    assert "batch 3: retrain" in out
    assert unlearn("request", "audit", run)[0] == 0


def test_work_needs_the_keys_of_the_ledger(run, unlearn, tmp_path, monkeypatch):
    monkeypatch.delenv("UNLEARN_KEYS")
    for words in (("process",), ("approve", 1), ("refuse", 1), ("rollback", 0), ("purge", "--yes")):
        one_line(unlearn("request", words[0], run, *words[1:]), "this needs the row key")
    one_line(unlearn("request", "cancel", run, 1, *ANYTHING), "this needs the row key")
    assert unlearn("request", "keygen", tmp_path / "other")[0] == 0
    one_line(unlearn("request", "process", run, "--keys", tmp_path / "other"), "was written with row key")
    one_line(unlearn("request", "process", run, "--keys", tmp_path / "none"), "no key folder")
    one_line(unlearn("request", "process", tmp_path, "--keys", tmp_path / "keys"), "run")


@pytest.mark.parametrize("name", [name for name in NASTY if name != "nul"])  # no argument of a process has a NUL
def test_hostile_text_in_every_field_of_the_work(name, run, unlearn, tmp_path):
    text = NASTY[name]
    before = json.loads(unlearn("request", "status", run, "--json")[1])["events"]
    file = ("certificate", "verify")
    tries = [
        ("process", run, "--by", text if len(text) < 200 else text[:300]),
        ("process", run, "--keys", text),
        ("process", run, "--device", text),
        ("process", text),
        ("approve", run, text, "--reason", text),
        ("refuse", run, text, "--reason", text),
        ("rollback", run, text, "--reason", text),
        ("purge", text),
        ("audit", run, "--head", text),
        ("audit", run, "--public-key", text),
        ("audit", text),
        ("export", run, "--csv", tmp_path / "missing" / text),
        (*file, text),
        ("certificate", "show", text),
        (*file, text, "--run", text),
    ]
    for words in tries[1:]:
        code, out, err = unlearn("request", *words)
        assert code in (1, 2), (words, out, err)
        check_shown(out + err)
    assert json.loads(unlearn("request", "status", run, "--json")[1])["events"] == before
    if name not in ("sql", "long"):
        return
    # one who works under such a name, and gives such reasons, leaves them as codes and text only
    assert unlearn("request", *map(str, tries[0]))[0] in (2, 3)
    unlearn("request", "process", run)
    assert unlearn("request", "approve", run, 1, "--reason", text, "--by", text[:200])[0] == 0
    shown = unlearn("request", "show", run, 1)[1]
    check_shown(shown)
    assert unlearn("request", "audit", run)[0] == 0


@pytest.mark.parametrize("name", NASTY)
def test_hostile_text_in_every_column_of_a_letter(name, run, unlearn, tmp_path):
    text = NASTY[name]
    for column in ("id", "subject", "hash", "label", text):
        letter = tmp_path / "letter.csv"
        with open(letter, "w", newline="") as file:
            # a writer of Python 3.10 takes a NUL only where it may escape it
            table = csv.writer(file, escapechar="\\" if "\0" in text else None)
            table.writerows([["id", column] if column in ("label", text) else [column], ["a", text]])
        for action in ("remove", "relabel"):
            code, out, err = unlearn("request", "submit", run, "--file", letter, "--action", action, "--label", 1)
            assert code in (0, 2)
            check_shown(out + err)
    check_shown(unlearn("request", "list", run)[1])
    assert unlearn("request", "audit", run)[0] == 0
