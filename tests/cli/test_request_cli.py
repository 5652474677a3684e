"""``unlearn request``: the way from a letter to an audit, and hostile text in every field."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest

NASTY = {
    "sql": "'; DROP TABLE events; --",
    "html": "<script>alert(1)</script>",
    "formula": "=HYPERLINK(\"http://x\",\"y\")",
    "path": "../../../etc/passwd",
    "ansi": "\x1b[2J\x1b[31mred",
    "long": "x" * 1_000_000,
    "nul": "a\0b",
    "right-to-left": "abc\u202edcb\u2066",
    "newline": "a\r\nb,c\t",
    "markup": "[bold red]x[/]",
}  # fmt: skip


@pytest.fixture
def run(run_copy: Path, tmp_path: Path, unlearn) -> Path:
    assert unlearn("request", "keygen", tmp_path / "keys")[0] == 0
    return run_copy


@pytest.fixture
def keyed(tmp_path: Path) -> tuple[str, str]:
    return "--keys", str(tmp_path / "keys")


def submit(unlearn, run, keyed, *words):
    return unlearn("request", "submit", run, *keyed, "--by", "dpo", *words)


def test_from_a_letter_to_an_audit(run, keyed, unlearn, tmp_path, monkeypatch):
    from unlearn.pipeline import Run

    row = Run.open(run).data.ids[0]
    code, out, _ = submit(unlearn, run, keyed, "--id", row, "--reason", "letter")
    assert code == 0
    assert "R-0001: written down" in out
    monkeypatch.setenv("UNLEARN_KEYS", keyed[1])
    code, out, _ = unlearn("request", "submit", run, "--id", row, "--json")
    assert (code, json.loads(out)["new"], json.loads(out)["times"]) == (0, False, 2)
    assert submit(unlearn, run, keyed, "--id", "nobody", "--received", "2020-01-01")[0] == 0

    code, out, _ = unlearn("request", "list", run)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if "R-" in line] == [
        ["R-0001", "remove", "1"],
        ["R-0002", "remove", "0"],
    ]
    assert "OVERDUE" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = unlearn("request", "show", run, "R-0001")
    assert [word for word in out.split() if word in ("submitted", "repeated")] == ["submitted", "repeated"]
    code, out, _ = unlearn("request", "status", run)
    assert "requests: 2 received" in out
    assert "overdue: R-0002" in out
    assert unlearn("request", "cancel", run, "R-0002", "--reason", "withdrawn")[0] == 0

    head = tmp_path / "head.json"
    assert unlearn("request", "export", run, "--head", head, "--csv", tmp_path / "r.csv")[0] == 0
    public = tmp_path / "keys" / "signing.pub"
    code, out, _ = unlearn("request", "audit", run, "--head", head, "--public-key", public)
    assert code == 0
    assert "Nothing speaks against it." in out
    head.write_text(head.read_text().replace('"count":', '"count": '))
    code, out, _ = unlearn("request", "audit", run, "--head", head)
    assert code == 1
    assert "DOES NOT HOLD" in out


def test_lists_for_programs_and_for_what_is_open(run, keyed, unlearn, tmp_path):
    assert submit(unlearn, run, keyed, "--id", "nobody")[0] == 0
    assert submit(unlearn, run, keyed, "--id", "somebody", "--due", "2099-01-01")[0] == 0
    assert unlearn("request", "cancel", run, 1, "--reason", "withdrawn", *keyed)[0] == 0
    found = json.loads(unlearn("request", "list", run, "--json")[1])["requests"]
    assert [(item["request"], item["status"]) for item in found] == [("R-0001", "cancelled"), ("R-0002", "received")]
    opened = json.loads(unlearn("request", "list", run, "--open", "--json")[1])["requests"]
    assert [item["due"] for item in opened] == ["2099-01-01"]
    shown = json.loads(unlearn("request", "show", run, "R-0001", "--json")[1])
    assert [event["kind"] for event in shown["events"]] == ["submitted", "cancelled"]
    facts = json.loads(unlearn("request", "status", run, "--json")[1])
    assert facts["requests"] == {"cancelled": 1, "received": 1}
    code, out, _ = unlearn("request", "audit", run, "--json")
    assert (code, json.loads(out)["holds"]) == (0, True)
    for words, line in (
        (("show", run, "R-0009"), "there is no request R-0009; `unlearn request list` shows all"),
        (("export", run, "--csv", tmp_path / "no" / "r.csv"), "create it first"),
        (("audit", run, "--head", tmp_path / "no.json"), "DOES NOT HOLD"),
        (("submit", run, "--id", "x", "--label", "many", *keyed), "'many' is not a valid float"),
        (("list", tmp_path), "recipe.toml"),
    ):
        code, out, err = unlearn("request", *words)
        assert code in (1, 2), words
        assert line in " ".join((out + err).split()), (words, out, err)


@pytest.mark.parametrize("name", NASTY)
def test_hostile_text_does_no_harm_and_is_shown_as_text(name, run, keyed, unlearn, tmp_path):
    text = NASTY[name]
    letter = tmp_path / "letter.txt"
    letter.write_bytes(text.encode())
    subjects = tmp_path / "subjects.csv"
    with open(subjects, "w", newline="") as file:
        csv.writer(file).writerows([["id", "customer"], ["digits-0000", text.replace("\0", "")]])
    tries = [
        ("--id", text),
        ("--subject", f"customer={text}", "--subjects", str(subjects)),
        ("--subject", text, "--subjects", str(subjects)),
        ("--hash", text),
        ("--file", str(letter)),
        ("--file", text),
        ("--id", "a", "--reason", text),
        ("--id", "b", "--by", text),
        ("--id", "c", "--received", text),
        ("--id", "d", "--due", text),
        ("--id", "e", "--action", text),
        ("--id", "f", "--subjects", text, "--subject", "customer=1"),
    ]
    for words in tries:
        paths = [value for option, value in pairwise(words) if option in ("--file", "--subjects")]
        if "\0" in text and text in paths:
            continue  # no argument of a process has a NUL; in names of files Python refuses it by itself
        code, out, err = submit(unlearn, run, keyed, *words)
        assert code in (0, 2), (words[:1], out, err)
        assert code == 0 or len(err.strip().splitlines()) == 1 or "Usage" in err
        check_shown(out + err)
    for words in (("show", run, text), ("cancel", run, text, *keyed), ("status", run), ("list", run), ("show", run, 1)):
        code, out, err = unlearn("request", *words)
        assert code in (0, 2)
        check_shown(out + err)
    table = tmp_path / "requests.csv"
    assert unlearn("request", "export", run, "--csv", table, "--events", tmp_path / "events.jsonl")[0] == 0
    with open(table, newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not any(cell[:1] in ("=", "+", "-", "@", "\t", "\r") for cell in cells)
    check_shown("".join(cells))
    assert unlearn("request", "audit", run)[0] == 0
    assert not (tmp_path.parent / "etc").exists()


def check_shown(text: str) -> None:
    """Nothing in it moves a cursor or turns the reading direction, and no part is overlong."""
    assert not set(text) & set("\x1b\0\u202e\u2066\r\t"), repr(text[:300])
    assert len(text) < 20_000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("list",), "there is no ledger"),
        (("show", "R-0001"), "there is no ledger"),
        (("audit",), "there is no ledger"),
        (("submit", "--id", "a"), "this needs the row key"),
        (("export",), "nothing to export is named"),
    ],
)
def test_one_clear_line(words, line, run, unlearn):
    code, _, err = unlearn("request", words[0], run, *words[1:])
    assert code == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not (run / "requests").exists() or not list((run / "requests").glob("ledger.sqlite"))
