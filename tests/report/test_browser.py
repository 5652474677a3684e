import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from report_cases import REPORT, top_row, with_leaf

from unlearn.report import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path to render the report with")
WIDTHS = (390, 1280)
# The report may not run scripts, so a page around it measures it: the frame is as wide as the screen it stands for.
MEASURE = """<!DOCTYPE html><body>{frames}<pre id="found"></pre><script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument, width = page.documentElement.clientWidth;
    const out = [...page.body.querySelectorAll("*")].filter((e) =>
      e.getBoundingClientRect().right > width + 1 && !e.closest(".scroll, svg, details:not([open]), .hidden"));
    return {{width, scroll: page.documentElement.scrollWidth, out: out.map((e) => e.outerHTML.slice(0, 80)),
             small: [...page.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().height < 10).length,
             title: page.title}};
  }});
  document.getElementById("found").textContent = "found:" + JSON.stringify(found) + ":end";
}});
</script></body>"""


def chromium(tmp_path, *arguments):
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture
def page(tmp_path):
    report = with_leaf(REPORT, ("detection", "top"), [top_row(rank) for rank in range(1, 31)])
    report["edit"]["steps"][0].update({f"another_number_{k}": 0.5 for k in range(12)})
    report["recipe"]["text"] = "key = " + "long " * 100
    report["limits"].append("unbroken" * 40)
    images = {row["id"]: np.random.default_rng(row["rank"]).random((1, 28, 28)) for row in report["detection"]["top"]}
    path = tmp_path / "report.html"
    path.write_text(render_report(report, images), encoding="utf-8")
    return path


def test_nothing_is_wider_than_the_screen(page, tmp_path):
    frames = "".join(f'<iframe src="report.html" style="border:0;width:{w}px;height:900px"></iframe>' for w in WIDTHS)
    (tmp_path / "measure.html").write_text(MEASURE.format(frames=frames), encoding="utf-8")
    shown = chromium(tmp_path, "--window-size=1400,1000", "--dump-dom", (tmp_path / "measure.html").as_uri())
    found = json.loads(re.search(r"found:(\[.*\]):end", shown.stdout, re.DOTALL).group(1).replace("&lt;", "<"))
    assert [frame["width"] for frame in found] == list(WIDTHS)
    for frame in found:
        assert frame["title"] == "mnist5k-relabel: fail"
        assert frame["out"] == []
        assert frame["scroll"] == frame["width"]
        assert frame["small"] == 0
    assert "CONSOLE" not in shown.stderr


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_drawn(page, tmp_path, width):
    shot = tmp_path / "shot.png"
    shown = chromium(tmp_path, f"--window-size={width},1200", f"--screenshot={shot}", page.as_uri())
    assert "CONSOLE" not in shown.stderr
    with Image.open(shot) as image:
        assert image.width >= width
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert any(
        colour == (0xA3, 0x20, 0x20) or colour == (0xFF, 0x9D, 0x94) for _, colour in colours
    )  # the tone of fail


def test_a_console_message_would_be_seen(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('seen')</script>", encoding="utf-8")
    assert "CONSOLE" in chromium(tmp_path, "--dump-dom", bad.as_uri()).stderr
