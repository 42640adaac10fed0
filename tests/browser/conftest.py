"""Pages in a real browser, opened from disk without a network; what they ask or complain of fails a test."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
LOCAL = ("file:", "data:", "blob:")
OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium from the system's packages, driven by Playwright."""
    program = next((path for path in map(shutil.which, NAMES) if path), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox it starts as root too, as in a container; the pages are our own.
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """open_page(path, width=1280, height=900, dark=False) -> a Playwright page.

    At the end of the test, a request to anywhere but the disk, an error on the console or an uncaught
    exception fails it.
    """
    contexts: list[Any] = []
    complaints: list[str] = []

    def watch(page: Any) -> None:
        page.on("request", lambda r: None if r.url.startswith(LOCAL) else complaints.append(f"asks {r.url}"))
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))

    def make(path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            offline=True,
        )
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(path.resolve().as_uri())
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints, complaints


def serious(page: Any) -> list[str]:
    """What axe-core finds wrong for people with disabilities, serious and critical findings only."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def scrolls_sideways(page: Any) -> bool:
    """Whether the page is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
