"""The README's pictures, made from a run: python experiments/pictures.py demo (needs ".[test]" and chromium)."""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments import cli
from nanochat.errors import UserError
from nanochat.inference.load import find_run

QUESTIONS = ("Hello! What is your name?", "What is 47 + 38?", "How do you spell garden?")
PICTURES = Path(__file__).parent / "pictures"
SIZE = (900, 760)
PATIENCE_S = 60
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--force-color-profile=srgb")  # fmt: skip


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="pictures.py", description=__doc__)
    parser.add_argument("run", help="its name, or the path of its directory")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder (default: experiments/pictures)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are (default: runs)")
    options = parser.parse_args(argv)
    directory = find_run(options.run, options.runs_dir).absolute()
    report = directory / "report.html"
    if not report.exists():
        raise UserError(f"{directory.name} has no report.html", "a finished run has one")
    options.out.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        driver.get(report.as_uri())
        driver.save_screenshot(str(options.out / "report.png"))
        with served(directory) as url:
            ask(driver, url, QUESTIONS)
            driver.save_screenshot(str(options.out / "chat.png"))
    print(f"{options.out / 'chat.png'}\n{options.out / 'report.png'}")
    return 0


@contextmanager
def browser(size: tuple[int, int] = SIZE) -> Iterator[Any]:
    """A browser without a window. Raises UserError where there is none."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    try:
        from selenium import webdriver
    except ImportError:
        raise UserError("pictures need selenium", 'pip install -e ".[test]"') from None
    if missing := [name for name, path in programs.items() if not path]:
        raise UserError(f"there is no {' and no '.join(missing)} here", "apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for switch in (*SWITCHES, f"--window-size={size[0]},{size[1]}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The address at which a run's chat page is served."""
    script = Path(__file__).with_name("chat.py")
    command = [sys.executable, str(script), str(directory), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = (re.search(r"http://\S+", line) for line in server.stdout)
            url = next((match[0] for match in found if match), None)
            if url is None:
                raise UserError("the server ended before it said where it serves", "see above")
            yield url
        finally:
            server.terminate()


def ask(driver: Any, url: str, questions: tuple[str, ...]) -> None:
    """Type questions into the page, and wait for each answer."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(url)
    wait = WebDriverWait(driver, PATIENCE_S)
    wait.until(lambda _: driver.find_element(By.ID, "send").is_enabled())
    for count, question in enumerate(questions, start=1):
        driver.find_element(By.ID, "text").send_keys(question, Keys.ENTER)
        wait.until(lambda _, count=count: len(driver.find_elements(By.CSS_SELECTOR, ".assistant .under")) == count
                   and driver.find_element(By.ID, "send").is_enabled())  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(main))
