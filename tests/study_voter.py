"""A voter at the page of a study, in a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipro_core.evaluation.study import Study
from ipro_core.evaluation.study_design import Showing

FLAGS = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]


@contextmanager
def real_browser() -> Iterator[Any]:
    """Chromium; skips the test, with a loud word, where it or playwright is missing."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        pytest.skip("THE STUDY'S PAGE IS NOT TESTED: there is no playwright (pip install playwright)")
    with sync_playwright() as playwright:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            opened = playwright.chromium.launch(executable_path=system, args=FLAGS)
        except Error as error:
            pytest.skip(f"THE STUDY'S PAGE IS NOT TESTED: no chromium ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


class Voter:
    """Somebody at the page, who votes by what an oracle tells them."""

    def __init__(self, browser: Any, study: Study, address: str, **device: Any) -> None:
        self.study, self.address = study, address
        self.context = browser.new_context(**device)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def begin(self) -> "Voter":
        self.page.get_by_role("button", name="Begin").click()
        return self

    def shown(self) -> Showing:
        """The trial in hand, and the sides it is shown by."""
        source = self.page.locator("video").first.evaluate("(video) => video.src")
        voter, trial = source.split("/")[-3:-1]
        return next(one for one in self.study.showings(voter) if one.trial.id == trial)

    def watch(self) -> None:
        """Until the questions may be answered: both videos have run to their end."""
        self.page.wait_for_selector("#questions fieldset:not([disabled])", timeout=20_000)

    def key_for(self, wanted: str) -> str:
        """1, 2 or 0 for a method; "honest" is tuned, the clean one of a spoilt pair, none of two the same."""
        showing = self.shown()
        methods = [showing.trial.methods[side] for side in showing.sides]
        if wanted == "left":
            return "1"
        if showing.trial.kind == "same":
            return "0"
        return str(1 + methods.index(showing.trial.methods[0] if showing.trial.kind == "spoilt" else "tuned"))

    def vote(self, wanted: str = "honest") -> None:
        """By the keyboard alone."""
        self.watch()
        before = self.page.locator("#count").inner_text()
        for _ in self.study.plan.questions:
            self.page.keyboard.press(self.key_for(wanted))
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "(before) => document.getElementById('count').innerText !== before"
            " || !document.getElementById('done').hidden",
            arg=before,
        )
