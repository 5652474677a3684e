"""The site builds with warnings as errors, holds every command and public name, and asks nothing of the network."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
from chromium import Browser
from test_packaging import commands

import unlearn
from unlearn.cli.main import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_command_is_on_the_page_of_commands(site: Path) -> None:
    page = (site / "cli.html").read_text()
    for words in commands(cli):
        path = " ".join(["unlearn", *words])
        assert f"Usage: {path} [OPTIONS]" in unescape(re.sub(r"<[^>]+>", "", page)), path


def test_every_public_name_is_in_the_python_reference(site: Path) -> None:
    pages = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    for name in unlearn.__all__:
        home = getattr(unlearn, name).__module__
        assert f'id="{home}.{name}"' in pages, name


def test_doctests_and_roles_are_rewritten(site: Path) -> None:
    pages = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    assert ":func:" not in pages
    assert "&gt;&gt;&gt;" in pages.replace('<span class="gp">', "")
    assert not re.search(r"<blockquote>\s*<blockquote>", pages)


def test_every_committed_output_is_a_page(site: Path) -> None:
    names = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.md")}
    assert {path.stem for path in (site / "results").glob("*.html")} == names


def test_formulas_are_set(site: Path) -> None:
    page = (site / "mathematics.html").read_text()
    assert page.count("<math") > 60
    assert "arithmatex" not in page
    assert "<merror" not in page


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    """Links lead elsewhere; fonts, scripts, styles and pictures must not."""
    loads = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^"\s>]+)|<link[^>]*\shref="?([^"\s>]+)')
    for path in site.rglob("*.html"):
        for found in loads.finditer(path.read_text()):
            address = found[1] or found[2]
            assert not re.match(r"(?:\w+:)?//", address), f"{path.name} loads {address}"


def test_every_picture_says_in_words_what_it_shows(site: Path) -> None:
    for path in site.rglob("*.html"):
        for image in re.findall(r"<img[^>]*>", path.read_text()):
            assert re.search(r'alt="[^"]{20,}"', image), f"{path.name}: {image}"


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(site: Path, browser: Browser, width: int) -> None:
    """Tables, formulas, pictures and code scroll in their own boxes."""
    browser.screen(width)
    for path in [*site.glob("*.html"), *site.glob("how-to/*.html"), site / "results" / "peers.html"]:
        browser.open(path)
        assert browser.script("return document.documentElement.scrollWidth") <= width, path.name  # type: ignore[operator]
        assert not [url for url in browser.requests() if not url.startswith("file:")]


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_those_that_the_code_draws() -> None:
    pictures = loaded("pictures")
    for name, draw in pictures.PICTURES.items():
        assert (pictures.IMAGES / f"{name}.svg").read_text() == draw(), f"run python docs/_site/pictures.py: {name}"
