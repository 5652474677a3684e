"""Debian's chromium, driven by Selenium: pages at any width, their console and their requests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

PLACES = {"chromium": "chromium", "chromium-driver": "chromedriver"}
# Whatever is wider than the screen and does not scroll in a box of its own.
OUTSIDE = """
const width = document.documentElement.clientWidth;
return [...document.body.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > width + 1
  && !e.closest(".scroll, pre, svg, details:not([open]), .hidden")).map((e) => e.outerHTML.slice(0, 80));
"""


class Browser:
    """One headless chromium. A test that needs it fails where it is not installed."""

    def __init__(self) -> None:
        missing = [package for package, program in PLACES.items() if shutil.which(program) is None]
        if missing:
            pytest.fail(f"the browser tests need Debian's {' and '.join(missing)}: apt-get install {' '.join(missing)}")
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for switch in (
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-dev-shm-usage",
            "disable-background-networking",
            "disable-component-update",
            "no-first-run",
            "hide-scrollbars",
        ):
            options.add_argument(f"--{switch}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def quit(self) -> None:
        self.driver.quit()

    def open(self, url: str | Path) -> None:
        """Load a page in a fresh document; earlier messages and requests are forgotten."""
        self.driver.get("about:blank")
        self.messages(), self.requests()
        self.driver.get(url.as_uri() if isinstance(url, Path) else url)

    def screen(self, width: int, height: int = 1000, *, dark: bool = False, medium: str = "") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": [scheme]})

    def messages(self) -> list[str]:
        """What the console said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since it was last asked."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def script(self, code: str, *arguments: object) -> object:
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0]).textContent", selector))

    def press(self, keys: str) -> None:
        ActionChains(self.driver).send_keys(keys).perform()

    def until(self, code: str, *arguments: object, seconds: float = 20) -> None:
        """Wait until a script returns something true."""
        WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(
            lambda _: self.script(code, *arguments), f"never came true: {code} {arguments}"
        )
