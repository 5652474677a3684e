"""The page over HTTP, for one browser on this machine.

Three things are asked of every request before anything else: its ``Host`` names this server on the loopback (so that no
name of another site can be pointed here), its ``Origin``, if it has one, is this server's (so that no page of another
site can ask), and its path begins with the token, which only the terminal shows. All else is 403. Paths name no files:
there is a fixed list of them, and any other is 404.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from unlearn.errors import FolderError, InputError, RowNotFoundError, UnlearnError
from unlearn.review.shown import Shown

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
MOST_BYTES = 65536
SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
JSON, TEXT = "application/json", "text/plain; charset=utf-8"


class ReviewServer(ThreadingHTTPServer):
    """Serves one review on the loopback.

    Args:
        shown: the review.
        port: to listen on; a free one if 0.

    Raises:
        FolderError: the port is taken.

    Attributes:
        token: the secret part of the path.
    """

    daemon_threads = True

    def __init__(self, shown: Shown, port: int = 0) -> None:
        self.shown = shown
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise FolderError(f"can not listen on port {port}: {error}; leave --port out for a free one") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @cached_property
    def pages(self) -> dict[str, tuple[str, bytes]]:
        """Type and contents of the page's own files, by path."""
        own, report = files("unlearn.review").joinpath("page"), files("unlearn.report").joinpath("templates")
        return {
            "": ("text/html; charset=utf-8", own.joinpath("review.html").read_bytes()),
            "review.js": ("text/javascript; charset=utf-8", own.joinpath("review.js").read_bytes()),
            "review.css": ("text/css; charset=utf-8", own.joinpath("review.css").read_bytes()),
            "style.css": ("text/css; charset=utf-8", report.joinpath("style.css").read_bytes()),
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a browser that went away go; tell of anything else."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def ask(self, path: str, query: dict[str, list[str]]) -> dict[str, Any] | None:
        """Return what a path shows; None for an unknown one."""
        shown = self.shown
        if path == "state":
            return shown.state()
        views = {"row": shown.row, "page": shown.page, "next": shown.following}
        if path not in views:
            return None
        at = _whole(query.get("at", [""])[0], len(shown.review.rows) - 1)
        if at is None:
            raise RowNotFoundError(f"there is no such row; rows are 0 to {len(shown.review.rows) - 1}")
        return views[path](at)

    def act(self, path: str, body: Any) -> dict[str, Any] | None:
        """Do what a path asks for; None for an unknown one. What it returns is said after it is on the disk."""
        shown, review = self.shown, self.shown.review
        if path == "decide":
            review.decide(str(body.get("row")), str(body.get("action")), body.get("label"))
            return shown.progress(review.place[str(body.get("row"))])
        if path == "undo":
            undone = review.undo()
            return {"undone": None if undone is None else review.place[undone], **shown.progress(-1)}
        if path == "finish":
            review.finish()
            return shown.progress(-1)
        return None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Show."""
        path = self._path()
        if path in self.server.pages:
            self._send(200, *self.server.pages[path])
        elif path is not None:
            self._answer(lambda: self.server.ask(path, parse_qs(urlsplit(self.path).query)))

    def do_POST(self) -> None:
        """Decide."""
        length = _whole(self.headers.get("Content-Length", ""), MOST_BYTES)
        sent = self.rfile.read(length or 0)
        path = self._path()
        if path is None:
            return
        if self.headers.get_content_type() != JSON:
            self._refuse(415, f"send {JSON}")
        elif length is None:
            self._refuse(413, f"send at most {MOST_BYTES} bytes, with their number as Content-Length")
        else:
            try:
                body = json.loads(sent)
            except ValueError:
                body = None
            if isinstance(body, dict):
                self._answer(lambda: self.server.act(path, body))
            else:
                self._refuse(400, "send one JSON table")

    def version_string(self) -> str:
        """Name no versions."""
        return "unlearn"

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: a log of requests would show the token."""

    def _path(self) -> str | None:
        """Return the path behind the token; None where the request was refused."""
        hosts = [f"{name}:{self.server.server_port}" for name in NAMES]
        origin = self.headers.get("Origin", f"http://{self.headers['Host']}")
        site = self.headers.get("Sec-Fetch-Site", "none")
        token, slash, path = urlsplit(self.path).path.removeprefix("/").partition("/")
        if self.headers.get_all("Host", []) not in ([host] for host in hosts):
            self._refuse(403, "this server answers to its own address only")
        elif origin != f"http://{self.headers['Host']}" or site not in ("same-origin", "none"):
            self._refuse(403, "this server answers to its own page only")
        elif not (slash and secrets.compare_digest(token.encode(), self.server.token.encode())):
            self._refuse(403, "the address lacks its token; use the one that the terminal shows")
        else:
            return path
        return None

    def _answer(self, make: Callable[[], dict[str, Any] | None]) -> None:
        try:
            facts = make()
        except RowNotFoundError as error:
            self._refuse(404, str(error))
        except InputError as error:
            self._refuse(400, str(error))
        except (UnlearnError, OSError) as error:
            self._refuse(500, str(error))
        else:
            if facts is None:
                self._refuse(404, "there is nothing at this address")
            else:
                self._send(200, JSON, json.dumps(facts, allow_nan=False).encode())

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True
        self._send(status, TEXT, why.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**SAFE, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _whole(text: str, most: int) -> int | None:
    """Return a whole number from 0 to ``most``; None for anything else.

    >>> _whole("7", 9), _whole("-7", 9), _whole("10", 9), _whole("\N{SUPERSCRIPT TWO}", 9)
    (7, None, None, None)
    """
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return number if number is not None and number <= most else None
