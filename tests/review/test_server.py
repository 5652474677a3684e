"""What the server answers, and to whom."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from review_cases import rows_of, served

from unlearn.errors import FolderError
from unlearn.review import ReviewServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with served(tmp_path) as started:
        yield started


def ask(
    server: ReviewServer, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> tuple[int, str, http.client.HTTPMessage]:
    """Send one request to the loopback; a path that begins with no slash is behind the token."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    where = path if path.startswith(("/", "http:")) else f"/{server.token}/{path}"
    sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kinds = {} if sent is None else {"Content-Type": "application/json"}
    connection.request("GET" if sent is None else "POST", where, sent, {**kinds, **(headers or {})})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response.headers


def told(server: ReviewServer, path: str, body: object = None) -> dict[str, Any]:
    status, text, _ = ask(server, path, body)
    assert status == 200, text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


POST = {"row": "row-0", "action": "keep"}
FOREIGN = {
    "no token": ("/", {}),
    "no token, a page": ("/state", {}),
    "a wrong token": ("/wrong/state", {}),
    "the token as query": ("/state?token={token}", {}),
    "the token without its end": ("/{short}/state", {}),
    "the token alone": ("/{token}", {}),
    "another host": ("state", {"Host": "evil.example"}),
    "another host, this port": ("state", {"Host": "evil.example:{port}"}),
    "no port": ("state", {"Host": "127.0.0.1"}),
    "another origin": ("state", {"Origin": "http://evil.example"}),
    "an opaque origin": ("state", {"Origin": "null"}),
    "another port": ("state", {"Origin": "http://127.0.0.1:1"}),
    "another scheme": ("state", {"Origin": "https://127.0.0.1:{port}"}),
    "the other name": ("state", {"Origin": "http://localhost:{port}"}),
    "from another site": ("state", {"Sec-Fetch-Site": "cross-site"}),
    "from a neighbour": ("state", {"Sec-Fetch-Site": "same-site"}),
    "an absolute address": ("http://evil.example/{token}/state", {}),
    "above": ("/../{token}/state", {}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_strangers_get_403_and_change_nothing(server: ReviewServer, case: str) -> None:
    """Rejects a server that any page in the browser, or any name pointed at the loopback, could use."""
    words = {"token": server.token, "short": server.token[:-1], "port": server.server_port}
    path, headers = FOREIGN[case]
    path, headers = path.format(**words), {name: value.format(**words) for name, value in headers.items()}
    for target, body in ((path, None), (path.replace("state", "decide"), POST)):
        status, text, _ = ask(server, target, body, headers)
        assert status == 403
        assert server.token not in text
    assert server.shown.review.decisions == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_its_own_page_is_served_under_both_names(server: ReviewServer, host: str) -> None:
    address = f"{host}:{server.server_port}"
    headers = {"Host": address, "Origin": f"http://{address}", "Sec-Fetch-Site": "same-origin"}
    assert ask(server, "state", None, headers)[0] == 200
    assert ask(server, "decide", POST, headers)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "../recipe.toml",
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "/{token}//etc/passwd",
        "decisions.csv",
        "review.jsonl",
        "page/review.js",
        "row?at=5",
        "row?at=-1",
        "row?at=x",
        "row?at=" + "9" * 5000,
        "row",
        "finish",
    ],
)
def test_a_path_outside_is_404(server: ReviewServer, path: str) -> None:
    assert ask(server, path.format(token=server.token))[0] == 404
    assert ask(server, path.format(token=server.token), POST)[0] in (404, 400)


def test_it_listens_on_the_loopback_only(server: ReviewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert len(server.token) >= 32


def test_tokens_differ(tmp_path: Path, server: ReviewServer) -> None:
    (tmp_path / "other").mkdir()
    with served(tmp_path / "other") as second:
        assert second.token != server.token


def test_a_taken_port_is_named(server: ReviewServer) -> None:
    with pytest.raises(FolderError, match=rf"port {server.server_port}: .*--port"):
        ReviewServer(server.shown, server.server_port)


@pytest.mark.parametrize("path", ["", "state", "nothing", "/wrong/"])
def test_every_answer_forbids_what_the_page_does_not_need(server: ReviewServer, path: str) -> None:
    _, _, headers = ask(server, path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    expected = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Server": "unlearn",
    }
    assert {name: headers[name] for name in expected} == expected
    assert "Access-Control-Allow-Origin" not in headers


def test_rows_pages_and_what_is_next(server: ReviewServer) -> None:
    row = told(server, "row?at=1")
    assert (row["id"], row["given"], row["suggested"], row["decision"]) == ("row-1", 1, [2, 0], None)
    assert [one["id"] for one in row["alike"]] == ["row-0", "row-1"]
    assert row["picture"].startswith("data:image/png;base64,")
    progress = told(server, "decide", {"row": "row-1", "action": "relabel", "label": 0})
    assert progress["counts"]["decided"] == 1
    assert progress["next"] == 2
    assert told(server, "row?at=1")["decision"] == {"action": "relabel", "label": 0}
    assert [one["decision"] for one in told(server, "page?at=0")["rows"]][:2] == [
        None,
        {"action": "relabel", "label": 0},
    ]
    assert told(server, "next?at=0")["next"] == 2
    assert told(server, "finish", {})["written"] == "decisions.csv"
    assert told(server, "undo", {})["undone"] == 1
    assert told(server, "state")["counts"]["decided"] == 0


BAD = {
    "no JSON": (b"{", 400, "one JSON table"),
    "a list": ([1], 400, "one JSON table"),
    "too much": (b" " * 70000, 413, "at most 65536 bytes"),
    "unknown row": ({"row": "row-9", "action": "keep"}, 404, "not flagged"),
    "no action": ({"row": "row-0"}, 400, "unknown action"),
    "bad label": ({"row": "row-0", "action": "relabel", "label": 1e300}, 400, "no class"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(server: ReviewServer, case: str) -> None:
    body, status, message = BAD[case]
    found, text, _ = ask(server, "decide", body)
    assert found == status
    assert message in text
    assert "\n" not in text
    assert server.shown.review.decisions == {}


def test_a_form_of_another_page_can_not_decide(server: ReviewServer) -> None:
    """A form can send text without asking first; only JSON is read."""
    assert ask(server, "decide", POST, {"Content-Type": "text/plain"})[0] == 415
    assert server.shown.review.decisions == {}


def test_a_disk_that_is_full_is_told_and_nothing_is_decided(
    server: ReviewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    status, text, _ = ask(server, "decide", POST)
    assert (status, "not saved" in text) == (500, True)
    assert told(server, "state")["counts"]["decided"] == 0


def test_rows_that_are_no_pictures_have_a_text(tmp_path: Path) -> None:
    with served(tmp_path, pictures=False) as server:
        row = told(server, "row?at=0")
        assert "picture" not in row
        assert row["text"].count("column") == 4
        assert told(server, "state")["text_shows"].startswith("the most extreme columns")


def test_made_up_rows_are_pictures() -> None:
    assert rows_of(3).batch(rows_of(3).positions(["row-0"]))[0].shape == (1, 1, 6, 6)
