"""Keys of the requests: one that turns names into codes, and one that signs. Both lie outside the run.

The row key makes HMACs of row ids, subject values and reasons, so that the ledger names nobody; who destroys it can no
longer match the ledger with any data. The signing key signs heads and certificates (Ed25519).
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from unlearn.errors import FolderError, LedgerError

ROW_KEY, SIGNING_KEY, PUBLIC_KEY = "rows.key", "signing.key", "signing.pub"
_REPOSITORIES = (".git", ".hg", ".svn")


@dataclass(frozen=True)
class Keys:
    """What was found in a key folder.

    Attributes:
        folder: where.
        rows: the 32 bytes of the row key; None where it is not there (or was destroyed).
        signing: the private key; None where nothing is signed.

    >>> keys = Keys(Path("."), bytes(32), None)
    >>> keys.code("row", "digits-0001") == keys.code("subject", "digits-0001"), len(keys.code("row", "a"))
    (False, 64)
    """

    folder: Path
    rows: bytes | None
    signing: Ed25519PrivateKey | None

    @classmethod
    def load(cls, folder: str | Path, *, run: Path | None = None) -> Keys:
        """Read the keys in a folder.

        Args:
            folder: what :func:`make_keys` wrote.
            run: the run folder, in which the keys must not lie.

        Raises:
            FolderError: no folder, keys inside the run or a repository, or readable by others.
            LedgerError: a damaged key.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FolderError(f"no key folder {str(path)!r}; make one with `unlearn request keygen DIR`")
        _refuse_inside(path, run)
        text = _read(path / ROW_KEY)
        rows = None
        if text is not None:
            try:
                rows = bytes.fromhex(text.decode().strip())
            except ValueError:
                rows = b""
            if len(rows) != 32:
                raise LedgerError(f"{str(path / ROW_KEY)!r} is no row key (64 hex digits); restore it from a copy")
        text = _read(path / SIGNING_KEY)
        signing = None
        if text is not None:
            try:
                found = load_pem_private_key(text, password=None)
            except (ValueError, TypeError) as error:
                raise LedgerError(f"{str(path / SIGNING_KEY)!r} is no private key; restore it from a copy") from error
            if not isinstance(found, Ed25519PrivateKey):
                raise LedgerError(f"{str(path / SIGNING_KEY)!r} is no Ed25519 key; make one with `request keygen`")
            signing = found
        return cls(path, rows, signing)

    def code(self, kind: str, text: str) -> str:
        """Return the HMAC-SHA256 of a text of a kind, as hex; equal texts of different kinds have different codes.

        Raises:
            LedgerError: the row key is not there.
        """
        if self.rows is None:
            raise LedgerError(
                f"{str(self.folder / ROW_KEY)!r} is not there: the row key was destroyed, or this is another folder"
            )
        return hmac.new(self.rows, kind.encode() + b"\0" + text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits by which a ledger knows its row key again."""
        return self.code("key", "fingerprint")[:16]

    @property
    def public(self) -> str | None:
        """The public key as hex; None where nothing is signed."""
        return None if self.signing is None else public_hex(self.signing.public_key())

    def sign(self, data: bytes) -> str | None:
        """Return the signature as hex; None without a signing key."""
        return None if self.signing is None else self.signing.sign(data).hex()

    def destroy(self) -> None:
        """Overwrite and remove the row key. Copies elsewhere, and old blocks of the disk, are out of reach."""
        path = self.folder / ROW_KEY
        try:
            with open(path, "r+b") as file:
                file.write(b"0" * path.stat().st_size)
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise FolderError(
                f"can not destroy {str(path)!r}: {error.strerror}; remove it by hand and purge again"
            ) from error


def make_keys(folder: str | Path) -> Keys:
    """Make a key folder (mode 0700) with a row key, a signing key (mode 0600) and the public key.

    Raises:
        FolderError: the folder lies in a run or a repository, holds keys already, or can not be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     keys = make_keys(Path(place, "keys"))
    ...     sorted((file.name, oct(file.stat().st_mode & 0o777)) for file in keys.folder.iterdir())
    [('rows.key', '0o600'), ('signing.key', '0o600'), ('signing.pub', '0o600')]
    """
    path = Path(folder)
    _refuse_inside(path, None)
    there = [name for name in (ROW_KEY, SIGNING_KEY, PUBLIC_KEY) if (path / name).exists()]
    if there:
        raise FolderError(f"{str(path)!r} holds {', '.join(there)} already; keys are never overwritten: choose another")
    signing = Ed25519PrivateKey.generate()
    public = signing.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path / ROW_KEY, secrets.token_hex(32).encode() + b"\n")
        _write(path / SIGNING_KEY, signing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        _write(path / PUBLIC_KEY, public)
    except OSError as error:
        for name in (ROW_KEY, SIGNING_KEY, PUBLIC_KEY):
            with contextlib.suppress(OSError):
                (path / name).unlink()
        raise FolderError(f"can not write keys to {str(path)!r}: {error.strerror}; choose another folder") from error
    return Keys.load(path)


def read_public_key(path: str | Path) -> str:
    """Read a public key file (PEM), as hex.

    Raises:
        LedgerError: it is no Ed25519 public key.
    """
    try:
        found = load_pem_public_key(Path(path).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise LedgerError(f"can not read public key {str(path)!r}: {error}; give a signing.pub") from error
    if not isinstance(found, Ed25519PublicKey):
        raise LedgerError(f"{str(path)!r} is no Ed25519 public key; give a signing.pub")
    return public_hex(found)


def public_hex(key: Ed25519PublicKey) -> str:
    """Return a public key as 64 hex digits."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def signature_holds(public: str, signature: str, data: bytes) -> bool:
    """Whether the signature (hex) is that of the data under the public key (hex)."""
    try:
        if (public, signature) != (public.lower(), signature.lower()):
            return False  # one spelling only, so that no byte of a file can change unseen
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _refuse_inside(folder: Path, run: Path | None) -> None:
    here = folder.resolve()
    for parent in (here, *here.parents):
        if (run is not None and parent == run.resolve()) or (parent / "recipe.toml").exists():
            raise FolderError(f"keys in {str(folder)!r} would lie inside the run {str(parent)!r}; keep them outside it")
        if any((parent / name).exists() for name in _REPOSITORIES):
            raise FolderError(f"keys in {str(folder)!r} would lie inside the repository {str(parent)!r}; keep them out")


def _read(path: Path) -> bytes | None:
    try:
        mode = path.stat().st_mode & 0o777
        if os.name != "nt" and mode & 0o077:
            raise FolderError(f"key {str(path)!r} is open to others (mode {mode:04o}); run `chmod 600 {path}`")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(error, FolderError):
            raise
        raise FolderError(f"can not read key {str(path)!r}: {error.strerror}; check the path") from error


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(file, 0o600)
        with open(file, "wb", closefd=False) as stream:
            stream.write(data)
        os.fsync(file)
    finally:
        os.close(file)
