"""Tests of the page at `/`, in a real browser with a real server of tiny random models."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from pft_core.data.records import Option, PairedExample
from pipelines.serve.http.keys import add_key
from tests.builders import write_dataset
from tests.serving import LocalServer, serve_config, write_policy

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

MAX_LENGTH = 500  # tokens
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SHOTS = Path(__file__).parents[3] / "runs" / "serve"
SCENARIO = (
    "Your garden by the river pays for itself. A neighbor offers his boat and his dock for all of your savings, and he "
    "will sell to the next person who asks if you take longer than a week."
)
OPTIONS = [
    "Buy the boat now, and live on what the dock earns.",
    "Keep the savings, and look for a smaller boat next year.",
    "Offer half now and half after one summer, when you know what the dock earns.",
]
EXAMPLE = PairedExample("boat", "Risk", SCENARIO, tuple(Option(text, int(i > 0)) for i, text in enumerate(OPTIONS)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2: Path) -> Path:
    """A folder of four policies: the default one, another one, and the slider's two ends."""
    folder = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("policy", "other", "first", "second")):
        write_policy(folder / name, tiny_qwen2, seed=seed + 1)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    config = serve_config(
        folder / "policy",
        folder / "cache",
        adapters={"other": str(folder / "other")},
        ends={"first": str(folder / "first"), "second": str(folder / "second")},
        limits={"default_max_tokens": 6},
        engine={"max_length": MAX_LENGTH},
        examples=str(write_dataset(folder / "examples", [EXAMPLE])),
    )
    with LocalServer(config).running() as server:
        yield server.url


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[tuple[str, str]]:
    """The URL and key of a server with keys."""
    key = add_key(folder / "keys.json", "reader")
    config = serve_config(folder / "policy", folder / "cache", keys=str(folder / "keys.json"))
    with LocalServer(config).running() as server:
        yield server.url, key


# The servers are requested first, so that they stop last: they need their own event loop, after Playwright's has ended.
@pytest.fixture(scope="module")
def browser(url: str, locked: tuple[str, str]) -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page, the addresses that it requested, and its errors and warnings."""

    page: Any
    addresses: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)

    def open(self, url: str) -> None:
        self.addresses.clear()
        self.complaints.clear()
        self.page.goto(url)
        expect(self.page.locator("#ask")).to_be_enabled()

    def count(self, path: str) -> int:
        return sum(address.endswith(path) for address in self.addresses)

    def _console(self, message: Any) -> None:
        # Chromium itself logs every response with a status of 400 or more.
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            self.complaints.append(message.text)

    def shares(self, card: str) -> list[float]:
        """Return the probabilities that a card shows, in percent."""
        texts = self.page.locator(f"#{card} [data-testid=probability]").all_text_contents()
        return [float(text.removesuffix("%")) for text in texts]


@contextmanager
def visiting(browser: Any, url: str, **context: Any) -> Iterator[Visit]:
    with browser.new_context(reduced_motion="reduce", **context) as browser_context:
        browser_context.set_default_timeout(5000)
        visit = Visit(browser_context.new_page())
        visit.watch()
        visit.open(url)
        yield visit


@pytest.fixture(scope="module")
def tab(browser: Any, url: str) -> Iterator[Visit]:
    with visiting(browser, url) as visit:
        yield visit


@pytest.fixture
def visit(tab: Visit, url: str) -> Visit:
    """A freshly loaded page in a tab that all tests share, because a new tab would cost each of them half a second."""
    tab.page.unroute_all()
    tab.open(url)
    return tab


def answer(visit: Visit, path: str, body: Any, *, times: int | None = None, **response: Any) -> None:
    """Answer a path in place of the server."""
    response |= {"content_type": "application/json", "body": json.dumps(body)}
    visit.page.route(f"**{path}", lambda route: route.fulfill(**response), times=times)


def ask(visit: Visit, message: str = "Bold chooses") -> None:
    """Submit the form and wait until the status shows the message."""
    visit.page.get_by_role("button", name="Ask").click()
    expect(visit.page.locator("#status")).to_contain_text(message)


def shown_id(visit: Visit, card: str) -> Any:
    return visit.page.locator(f"#{card} [data-testid=adapter]")


def test_each_pole_shows_the_api_response_and_its_probabilities_sum_to_one(visit: Visit, url: str):
    ask(visit)
    response = httpx.post(f"{url}/v1/compare", json={"scenario": SCENARIO, "options": OPTIONS}).json()
    for side in ("first", "second"):
        chosen = response[side]["chosen"]
        shares = visit.shares(side)
        assert shares == [pytest.approx(100 * option["probability"], abs=0.06) for option in chosen["options"]]
        assert sum(shares) == pytest.approx(100, abs=0.15 + 1e-9)  # three numbers, each rounded by up to 0.05
        card = visit.page.locator(f"#{side}")
        expect(card.locator(".chosen .words")).to_have_text(chosen["option"])
        fitting = ", ".join("ABC"[i] for i in chosen["all"])
        expect(card.locator(".verdict")).to_contain_text(f"Chooses {chosen['letter']}. All that fit: {fitting} (")
        expect(shown_id(visit, side)).to_have_text(response[side]["adapter"])


def test_moving_the_slider_uses_the_adapter_at_that_weight(visit: Visit):
    ask(visit)
    before, poles = visit.shares("between"), visit.shares("first") + visit.shares("second")
    expect(shown_id(visit, "between")).to_contain_text("slider-0.50@")
    slider = visit.page.get_by_role("slider")
    slider.press("ArrowLeft")  # toward the first pole
    expect(slider).to_have_attribute("aria-valuetext", "55% Bold, 45% Careful")
    expect(shown_id(visit, "between")).to_contain_text("slider-0.55@")
    expect(visit.page.locator("#how")).to_contain_text("An interpolated adapter answered")
    assert visit.shares("between") != before
    assert visit.shares("first") + visit.shares("second") == poles
    slider.press("Home")
    expect(visit.page.locator("#how")).to_contain_text("the prompt states the pole")


def test_without_an_adapter_between_the_poles_the_page_says_that_probabilities_are_mixed(visit: Visit):
    visit.page.get_by_label("Policy").select_option(index=2)
    ask(visit)
    visit.page.locator("#slider").fill("25")
    expect(visit.page.locator("#slider")).to_have_attribute("aria-valuetext", "75% Bold, 25% Careful")
    first, second = visit.shares("first"), visit.shares("second")
    mixed = [0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True)]
    expect(visit.page.locator("#between .number").first).to_have_text(f"{mixed[0]:.1f}%")
    assert visit.shares("between") == pytest.approx(mixed, abs=0.11)  # all rounded
    expect(visit.page.locator("#how")).to_contain_text("the options' probabilities were mixed")
    expect(shown_id(visit, "between")).to_contain_text("other@")


def test_several_slider_moves_send_one_request_and_a_late_answer_is_ignored(visit: Visit):
    ask(visit)
    held: list[Any] = []
    visit.page.route("**/v1/choose", lambda route: held.append(route) if not held else route.continue_())
    slider = visit.page.locator("#slider")
    slider.evaluate("s => { for (s.value of [60, 70, 80]) s.dispatchEvent(new Event('input')) }")
    with visit.page.expect_request("**/v1/choose") as first:
        pass
    assert first.value.post_data_json["preference"] == {"axis": "Risk", "Bold": 0.2, "Careful": 0.8}
    slider.fill("10")
    expect(shown_id(visit, "between")).to_contain_text("slider-0.90@")
    held[0].continue_()
    visit.page.wait_for_timeout(300)
    expect(shown_id(visit, "between")).to_contain_text("slider-0.90@")
    assert visit.count("/v1/choose") == 2
    assert visit.complaints == []


def test_markup_in_a_question_is_shown_as_text_and_does_not_run(visit: Visit):
    attack = '<img src=x onerror="window.ran = 1"><script>window.ran = 1</script>'
    visit.page.get_by_label("Scenario").fill(attack)
    visit.page.get_by_label("Option A", exact=True).fill(attack)
    ask(visit)
    expect(visit.page.locator("#asked-question")).to_have_text(f"Risk: {attack}")
    for card in ("first", "second", "between"):
        expect(visit.page.locator(f"#{card} .words").first).to_have_text(attack)
    assert visit.page.locator("img").count() == 0
    assert visit.page.evaluate("window.ran") is None


def test_markup_in_an_example_or_an_error_is_shown_as_text(visit: Visit, url: str):
    attack = '<img src=x onerror="window.ran = 1">'
    example = {"axis": attack, "scenario": attack, "options": [attack, attack]}
    answer(visit, "/v1/examples", {"examples": [example]})
    answer(visit, "/v1/compare", {"error": {"message": attack}}, status=400)
    visit.open(url)
    expect(visit.page.get_by_label("Option B", exact=True)).to_have_value(attack)
    ask(visit, message=attack)
    assert visit.page.locator("img").count() == 0
    assert visit.page.evaluate("window.ran") is None


def test_the_page_contacts_only_its_own_server_and_the_console_stays_empty(visit: Visit, url: str):
    ask(visit)
    visit.page.locator("#slider").fill("30")
    visit.page.get_by_label("Policy").select_option("base")
    expect(visit.page.locator("#trained")).to_contain_text("trained for neither pole")
    ask(visit)
    hosts = {urlsplit(address).netloc for address in visit.addresses if not address.startswith("data:")}
    assert hosts == {urlsplit(url).netloc}
    assert visit.complaints == []


def test_a_refusal_is_shown_with_the_servers_message(visit: Visit):
    visit.page.get_by_label("Scenario").fill(" river" * MAX_LENGTH)
    ask(visit, message=f"but this server takes at most {MAX_LENGTH}")
    expect(visit.page.locator("#status")).to_contain_class("error")
    expect(visit.page.locator("#answers")).to_be_hidden()
    visit.page.get_by_label("Scenario").fill("The river rises.")
    expect(visit.page.locator("#status")).to_be_empty()
    ask(visit)


def test_the_page_retries_a_busy_server_once_after_the_wait_that_it_names(visit: Visit):
    full = {"error": {"message": "64 requests wait already"}}
    answer(visit, "/v1/compare", full, times=1, status=429, headers={"Retry-After": "1"})
    ask(visit, message="Busy, trying again in 1 s: 64 requests wait already")
    expect(visit.page.locator("#status")).to_contain_text("Bold chooses")
    answer(visit, "/v1/compare", full, status=429, headers={"Retry-After": "0.1"})
    ask(visit, message="64 requests wait already")
    expect(visit.page.locator("#status")).to_have_text("64 requests wait already")
    assert visit.count("/v1/compare") == 4


def test_free_text_is_shown_for_both_poles_and_between_them(visit: Visit, url: str):
    visit.page.get_by_label("Write free text").check()
    ask(visit, message="Bold and Careful have answered")
    response = httpx.post(f"{url}/v1/compare", json={"scenario": SCENARIO, "weight": 0.5}).json()
    for card in ("first", "second", "between"):
        expect(visit.page.locator(f"#{card} .text")).to_have_text(response[card]["text"] or "(The answer is empty.)")
        assert visit.shares(card) == []
    visit.page.locator("#slider").fill("80")
    expect(shown_id(visit, "between")).to_contain_text("slider-0.20@")
    expect(visit.page.locator("#between .text")).not_to_have_text(response["between"]["text"])


def test_without_an_adapter_between_the_poles_the_page_says_that_there_is_no_free_text(visit: Visit):
    visit.page.get_by_label("Policy").select_option(index=2)
    visit.page.get_by_label("Write free text").check()
    ask(visit, message="Bold and Careful have answered")
    expect(visit.page.locator("#how")).to_contain_text("texts cannot be mixed")
    expect(visit.page.locator("#slider")).to_be_disabled()
    expect(shown_id(visit, "between")).to_be_hidden()


def test_two_to_ten_options_can_be_added_and_removed_by_keyboard(visit: Visit):
    options = visit.page.locator("#options textarea")
    visit.page.get_by_label("Remove option B").press("Enter")
    expect(options).to_have_count(2)
    assert visit.page.evaluate("document.activeElement.value") == OPTIONS[2]
    expect(visit.page.get_by_label("Remove option A")).to_be_disabled()
    for number in range(8):
        visit.page.get_by_role("button", name="Add an option").press("Enter")
        visit.page.keyboard.type(f"Wait {number}.")
    expect(options).to_have_count(10)
    expect(visit.page.get_by_role("button", name="Add an option")).to_be_disabled()
    ask(visit)
    assert len(visit.shares("first")) == 10
    expect(visit.page.locator("#first .verdict")).to_contain_text("All that fit: not scored (10 options: ")


def test_a_changed_question_marks_the_answers_as_stale(visit: Visit):
    ask(visit)
    visit.page.get_by_label("Value conflict").select_option("Pace")
    expect(visit.page.locator("#status")).to_have_text("The question has changed: ask again.")
    expect(visit.page.locator("#answers")).to_contain_class("stale")
    ask(visit, message="Fast chooses")
    expect(visit.page.locator("#answers")).not_to_contain_class("stale")
    expect(visit.page.locator("#second .description")).to_have_text("Waits.")


def test_an_example_is_filled_in_and_can_be_replaced_by_an_own_question(visit: Visit):
    scenario = visit.page.get_by_label("Scenario")
    expect(scenario).to_have_value(SCENARIO)
    assert [field.input_value() for field in visit.page.locator("#options textarea").all()] == OPTIONS
    visit.page.get_by_label("Example").select_option("Your own")
    expect(scenario).to_be_empty()
    visit.page.get_by_role("button", name="Ask").click()  # the browser itself reports the missing field
    expect(scenario).to_be_focused()
    assert visit.count("/v1/compare") == 0


def test_a_server_with_keys_admits_a_browser_with_a_key(browser: Any, locked: tuple[str, str]):
    url, key = locked
    assert httpx.get(url).status_code == 401
    # With this error, headless Chromium reports that it would prompt; an unreadable challenge causes no prompt.
    with browser.new_context() as without_key, pytest.raises(sync_api.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        without_key.new_page().goto(url)
    with visiting(browser, url, http_credentials={"username": "reader", "password": key}) as visit:
        expect(visit.page.locator("#example-label")).to_be_hidden()  # this server has no examples
        expect(visit.page.get_by_label("Scenario")).to_be_empty()
        visit.page.get_by_label("Scenario").fill("The river rises.")
        for name in "AB":
            visit.page.get_by_label(f"Option {name}", exact=True).fill(f"Way {name}")
        ask(visit)
        answer(visit, "/v1/compare", {"error": {"message": "no valid API key"}}, status=401)
        ask(visit, message="no valid API key. Reload the page")


def test_long_words_do_not_widen_the_page(browser: Any, url: str):
    """Long words are put into every text: scenarios, options, answers, and a policy's names and descriptions."""
    with visiting(browser, url, viewport={"width": 360, "height": 800}) as visit:
        ask(visit)
        lengthened = visit.page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter((place) => {
                 const fixed = place.matches('dt, button, .letter, .number, input, br, i') || place.closest('template');
                 if (place.children.length || fixed) return false;
                 if (place.tagName === 'TEXTAREA') place.value = 'W'.repeat(300);
                 else place.textContent += ' ' + 'W'.repeat(300);
                 return true; }).length"""
        )
        assert lengthened > 40
        wide = visit.page.evaluate(
            """() => [...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > 360)
                 .map((e) => e.tagName + '.' + e.className)"""
        )
        assert (visit.page.evaluate("document.documentElement.scrollWidth"), wide) == (360, [])


@pytest.mark.parametrize(("name", "width", "scheme"), [("page", 1180, "light"), ("page-narrow", 360, "dark")])
def test_the_page_fits_the_window_and_is_saved_as_a_screenshot(
    browser: Any, url: str, name: str, width: int, scheme: str
):
    viewport = {"width": width, "height": 800}
    with visiting(browser, url, viewport=viewport, color_scheme=scheme) as visit:
        ask(visit)
        visit.page.locator("#slider").fill("30")
        expect(shown_id(visit, "between")).to_contain_text("slider-0.70@")
        SHOTS.mkdir(parents=True, exist_ok=True)
        visit.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(14, 17, 22)"}[scheme]
