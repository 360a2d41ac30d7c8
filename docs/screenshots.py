"""Make the screenshots of the documentation: `python docs/screenshots.py`, with chromium installed.

Plays the demo, which kills a worker, opens Flower on its run and photographs the pages.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
IMAGES = HERE / "images"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
URL = re.compile(r"Flower shows the run: (http\S+)")


def photograph(browser_page: Page, run: str) -> None:
    """Make the picture in the light."""
    browser_page.goto(run)
    browser_page.locator(".dur").wait_for()
    browser_page.wait_for_timeout(500)  # the fonts
    browser_page.screenshot(path=IMAGES / "run-light.png")


def main() -> None:
    """Play the demo and photograph it."""
    IMAGES.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    command = [
        sys.executable,
        "-m",
        "example_project.demo",
        "--flower",
        "--port=0",
        f"--folder={folder / 'demo'}",
    ]
    demo = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        output = demo.stdout or sys.exit("the demo says nothing")
        run = next(match[1] for line in output if (match := URL.search(line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            size = {"width": 1280, "height": 880}
            photograph(browser.new_page(viewport=size, color_scheme="light"), run)  # type: ignore[arg-type]
            dark = browser.new_page(viewport=size, color_scheme="dark")  # type: ignore[arg-type]
            dark.goto(run)
            dark.wait_for_timeout(500)
            dark.mouse.wheel(0, 330)
            dark.wait_for_timeout(300)
            dark.screenshot(path=IMAGES / "run-dark.png")
            browser.close()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
