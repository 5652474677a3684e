"""Keys: outside the run and any repository, closed to others, never overwritten."""

from __future__ import annotations

import hashlib
import hmac
import os

import pytest

from unlearn.errors import FolderError, LedgerError
from unlearn.requests import Desk, Keys, make_keys, read_public_key
from unlearn.requests.keys import signature_holds


def test_codes_are_hmacs_of_kind_and_text(keys):
    expected = hmac.new(keys.rows, b"row\x00digits-0001", hashlib.sha256).hexdigest()
    assert keys.code("row", "digits-0001") == expected
    assert keys.code("row", "a\ud800")  # a lone surrogate, as from a broken file name


def test_loading_gives_what_was_made(keys):
    again = Keys.load(keys.folder)
    assert (again.rows, again.public, again.fingerprint) == (keys.rows, keys.public, keys.fingerprint)
    assert read_public_key(keys.folder / "signing.pub") == keys.public


def test_a_signature_holds_for_its_key_and_data_only(keys, tmp_path):
    signature = keys.sign(b"head")
    other = make_keys(tmp_path / "other")
    assert signature_holds(keys.public, signature, b"head")
    assert not signature_holds(keys.public, signature, b"heed")
    assert not signature_holds(other.public, signature, b"head")
    assert not signature_holds(keys.public, signature.upper(), b"head")
    assert not signature_holds("", "zz", b"head")


def test_keys_are_not_overwritten(keys):
    with pytest.raises(FolderError, match="never overwritten"):
        make_keys(keys.folder)


def test_keys_inside_a_run_or_a_repository_are_refused(folder, tmp_path, keys):
    with pytest.raises(FolderError, match="inside the run"):
        make_keys(folder / "keys")
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    with pytest.raises(FolderError, match="inside the repository"):
        make_keys(tmp_path / "repo" / "deep" / "keys")
    assert not (tmp_path / "repo" / "deep").exists()
    import shutil

    shutil.copytree(keys.folder, folder / "keys")
    with pytest.raises(FolderError, match="inside the run"):
        Desk.open(folder, keys=folder / "keys", create=True)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    made = make_keys(tmp_path / "keys")
    os.chmod(made.folder / "rows.key", 0o644)
    with pytest.raises(FolderError, match=r"open to others \(mode 0644\); run `chmod 600"):
        Keys.load(made.folder)


def test_damaged_and_missing_keys_are_named(tmp_path):
    made = make_keys(tmp_path / "keys")
    (made.folder / "rows.key").write_text("short\n")
    with pytest.raises(LedgerError, match="is no row key"):
        Keys.load(made.folder)
    with pytest.raises(FolderError, match="no key folder"):
        Keys.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="can not write keys"):
        make_keys(tmp_path / "file" / "keys")


def test_a_destroyed_key_is_gone(tmp_path):
    made = make_keys(tmp_path / "keys")
    made.destroy()
    left = Keys.load(made.folder)
    assert left.rows is None
    assert left.public == made.public
    with pytest.raises(LedgerError, match="row key was destroyed"):
        left.code("row", "a")
