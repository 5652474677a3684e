"""From what a letter says to rows: by id, by subject, by content hash, or a file of these."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.inputs import named_tensors

KINDS = ("id", "subject", "hash")
_COLUMNS = (*KINDS, "label")


@dataclass(frozen=True)
class Asked:
    """One thing that a request names.

    Attributes:
        kind: ``id``, ``subject`` or ``hash``.
        value: a row id, ``column=value``, or a content hash.
        label: the new label, where the file gives one.
    """

    kind: str
    value: str
    label: int | float | None = None


@dataclass(frozen=True)
class Selection:
    """What was asked for, in rows.

    Attributes:
        labels: label asked for (None: none was stated) by id of each row that is held.
        not_held: what is not in the data.
    """

    labels: dict[str, int | float | None] = field(default_factory=dict)
    not_held: list[Asked] = field(default_factory=list)


def asked_for(
    ids: Iterable[str] = (), subjects: Iterable[str] = (), hashes: Iterable[str] = (), file: str | Path | None = None
) -> list[Asked]:
    """Return everything that is asked for, each thing once, in a fixed order.

    Raises:
        InputError: nothing is asked for, or an entry that can not be meant.
    """
    for name, value in (("ids", ids), ("subjects", subjects), ("hashes", hashes)):
        if isinstance(value, str):
            raise InputError(f"{name} is the string {value[:40]!r}; give a list of them")
    found = [Asked("id", text) for text in ids]
    found += [Asked("subject", text) for text in subjects]
    found += [Asked("hash", text.lower()) for text in hashes]
    if file is not None:
        found += read_selection(file)
    if not found:
        raise InputError("the request names no row; give an id, a subject (column=value), a content hash or a file")
    for item in found:
        _check(item)
    return list(dict.fromkeys(found))


def _check(item: Asked) -> None:
    if not item.value:
        raise InputError(f"the request names an empty {item.kind}; leave it out")
    column, equals, value = item.value.partition("=")
    if item.kind == "subject" and not (column and equals and value):
        raise InputError(f"subject {item.value[:40]!r} is not COLUMN=VALUE, such as customer=8841")
    if item.kind == "hash" and (len(item.value) != 64 or set(item.value) - set("0123456789abcdef")):
        raise InputError(
            f"{item.value[:40]!r} is no content hash: 64 hex digits, as unlearn.requests.content_hashes gives"
        )


def read_selection(path: str | Path) -> list[Asked]:
    """Read a file: a CSV with a column ``id``, ``subject`` or ``hash`` (and ``label``), or one id a line.

    Raises:
        InputError: what is wrong, with the line number.
    """
    where, text = repr(str(path)[:200]), _text(path)
    header = [name.strip() for name in text.partition("\n")[0].split(",")]
    if not set(header) & set(KINDS):
        return [Asked("id", line) for line in text.splitlines() if line]
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown or len(set(header)) != len(header):
        raise InputError(f"{where} has the columns {str(header)[:200]}; known: {', '.join(_COLUMNS)}, each once")
    found = []
    try:
        reader = csv.DictReader(io.StringIO(text.partition("\n")[2], newline=""), header)
        for row in reader:
            at = f"{where} line {reader.line_num + 1}"
            named = [(kind, row[kind]) for kind in KINDS if row.get(kind)]
            if len(named) != 1 or None in row:
                raise InputError(f"{at}: name one of {', '.join(KINDS)}")
            label = row.get("label")
            found.append(Asked(*named[0], None if not label else number(label, at)))
    except csv.Error as error:
        raise InputError(f"{where} is no CSV that can be read: {error}") from error
    return found


def number(text: str, where: str) -> int | float:
    """Read a label.

    Raises:
        InputError: it is no finite number.
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value - value != 0:
        raise InputError(f"{where}: label {text[:40]!r} is no finite number")
    return value


def read_subjects(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """Read a CSV that maps ids to subjects; return ids by value by column.

    Raises:
        InputError: no column ``id``, no other column, or a file that can not be read.
    """
    where = f"subject file {str(path)[:200]!r}"
    try:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""))
        names = list(reader.fieldnames or ())
        if "id" not in names or len(names) < 2:
            raise InputError(
                f"{where} has the columns {str(names)[:200]}; it needs id and a subject column, such as customer"
            )
        found: dict[str, dict[str, list[str]]] = {name: {} for name in names if name != "id"}
        for row in reader:
            for name, values in found.items():
                values.setdefault(row[name] or "", []).append(row["id"])
    except csv.Error as error:
        raise InputError(f"can not read {where}: {error}; give a CSV with id and a subject column") from error
    return found


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"can not read {str(path)[:200]!r}: {error.strerror}; give a text file") from error
    except ValueError as error:
        raise InputError(f"{str(path)[:200]!r} is no text in UTF-8; save it so") from error


def content_hashes(rows: Rows) -> dict[str, str]:
    """Return the sha256 of each row's input (names, types, shapes, bytes; no id, no label), as hex, by id.

    A copy of a row under another id has the same hash.

    >>> rows = Rows.from_tensors(torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([0, 1, 1]))
    >>> found = content_hashes(rows)
    >>> found["0"] == found["2"], found["0"] == found["1"]
    (True, False)
    """
    found = {}
    for positions, inputs, _ in rows.batches(1024):
        parts = sorted(named_tensors(inputs).items())
        kind = repr([(name, str(part.dtype), tuple(part.shape[1:])) for name, part in parts]).encode()
        raw = [part.detach().cpu().reshape(len(part), -1).contiguous().view(torch.uint8).numpy() for _, part in parts]
        for k, position in enumerate(positions.tolist()):
            found[rows.ids[position]] = hashlib.sha256(kind + b"".join(part[k].tobytes() for part in raw)).hexdigest()
    return found


def select(asked: Iterable[Asked], rows: Rows, subjects: Mapping[str, Mapping[str, list[str]]] | None) -> Selection:
    """Find the rows.

    Raises:
        InputError: a subject is named and no subject file is given, or it has no such column; two labels for one row.
    """
    found = Selection()
    by_hash: dict[str, list[str]] | None = None
    for item in asked:
        if item.kind == "id":
            matched = [item.value] if item.value in rows else []
        elif item.kind == "subject":
            column, _, value = item.value.partition("=")
            if subjects is None:
                raise InputError("a subject is named, but no subject file: state one with --subjects or in the recipe")
            if column not in subjects:
                raise InputError(f"the subject file has no column {column[:40]!r}; it has {', '.join(subjects)[:200]}")
            matched = [row for row in subjects[column].get(value, ()) if row in rows]
        else:
            if by_hash is None:
                by_hash = {}
                for row, digest in content_hashes(rows).items():
                    by_hash.setdefault(digest, []).append(row)
            matched = by_hash.get(item.value, [])
        if not matched:
            found.not_held.append(item)
        for row in matched:
            if found.labels.get(row) not in (None, item.label) and item.label is not None:
                raise InputError(f"row {row[:40]!r} gets two labels, {found.labels[row]} and {item.label}; give it one")
            found.labels[row] = item.label if found.labels.get(row) is None else found.labels[row]
    return found
