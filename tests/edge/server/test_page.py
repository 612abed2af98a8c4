"""The page in a real browser: chats, stopping, the picture of the machine, keys, narrow screens."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
TIMEOUT_MS = 300_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        sandbox = [] if os.name == "nt" or os.geteuid() else ["--no-sandbox"]
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=sandbox, timeout=TIMEOUT_MS
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A page whose every request goes to the server, and that logs no error."""
    context = browser.new_context()
    page = context.new_page()
    problems = list[str]()
    page.on("pageerror", lambda error: problems.append(str(error)))
    strangers = list[str]()
    page.on("request", lambda request: strangers.append(request.url))
    page.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    page.goto(url)
    yield page
    context.close()
    assert not problems
    assert all(each.startswith((f"{url}/", "data:")) for each in strangers)


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def test_a_chat_is_answered_and_stays_after_a_reload(page: Page) -> None:
    expect(page.get_by_label("Model")).to_have_value("tales-moe")
    ask(page, "Tell me a story about a <b>fox</b>.")
    expect(page.locator(".turn.user")).to_have_text("Tell me a story about a <b>fox</b>.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    answer = page.locator(".turn.assistant").inner_text()
    assert answer.strip()
    page.reload()
    expect(page.locator(".turn.assistant")).to_have_text(answer)


def test_an_answer_is_stopped_with_escape_and_the_chat_goes_on(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    ask(page, "Hi")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.unroute("**/v1/chat/completions")
    ask(page, "Tell me about a hare.")
    expect(page.locator(".turn.assistant")).not_to_be_empty()


def test_chats_are_kept_apart_opened_and_deleted_by_keyboard(page: Page) -> None:
    ask(page, "First")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="New chat").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "Second")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="First", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user")).to_have_text("First")
    page.get_by_role("button", name="Delete First").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user")).to_have_text("Second")


def test_the_machine_is_shown(page: Page) -> None:
    ask(page, "Hi")
    expect(page.locator("#map")).to_have_attribute("aria-label", "256 of 256 experts are in memory")
    expect(page.locator("#memory")).to_contain_text("of 2.00 GiB")
    expect(page.locator("#hits")).to_contain_text("%")


def test_experts_that_are_being_read_are_told_apart(page: Page) -> None:
    label = "drawMap([[0, 1, 2, 3]]), document.getElementById('map').getAttribute('aria-label')"
    assert page.evaluate(label) == "2 of 4 experts are in memory, 1 are loading"
    expect(page.locator(".key")).to_contain_text("loading")


def test_an_error_is_told(page: Page) -> None:
    ask(page, "fox " * 600)
    expect(page.locator(".turn.error")).to_contain_text("the context holds")


def test_everything_is_there_on_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    for name in ("Message", "Model"):
        expect(page.get_by_label(name)).to_be_in_viewport()
    for name in ("Send", "New chat"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.documentElement.scrollHeight") <= 640


def test_every_control_is_reached_by_the_tab_key(page: Page) -> None:
    page.get_by_label("Message").focus()
    reached = set[str]()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"send", "model", "new", "text", "log"} <= reached
