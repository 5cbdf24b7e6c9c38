"""The page to try a model on, in a real browser."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from browser import chromium, complaints, requested
from fake_models import CHAT, answer_of, pair_pm, pointwise
from rm_export.families.armorm import OBJECTIVES
from rm_runtime.families.pointwise import ArmoRM
from served import PATIENCE, Client, eventually, serving

QUESTION = "How do tides come about?"
ANSWERS = ["The moon.", "The moon pulls at the sea, which the earth turns below.", "No."]
ASKED = {"messages": [{"role": "user", "content": QUESTION}], "responses": ANSWERS}
MARKUP = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"><b>bold</b>"


def armo_outputs(rendered: str) -> dict[str, Any]:
    """Rewards of both signs that differ between answers and objectives."""
    length = len(answer_of(rendered))
    if answer_of(rendered) == "NaN":
        return {"score": math.nan, "rewards": [0] * 19, "gating": [0] * 19, "coefficients": [0] * 19}
    rewards = [length / 100 - place / 19 for place in range(19)]
    coefficients = [place / 190 for place in range(19)]
    score = sum(map(float.__mul__, rewards, coefficients))
    return {"score": score, "rewards": rewards, "gating": [1 / 19] * 19, "coefficients": coefficients}


MODELS = {
    "armo": pointwise(armo_outputs, ArmoRM, objectives=list(OBJECTIVES), gate_pattern=[CHAT.bos_token_id]),
    "pm": pair_pm(lambda a, b: (len(a) / 20, len(b) / 30)),
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def driver() -> Iterator[WebDriver]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(driver: WebDriver, client: Client) -> Iterator[Page]:
    """The page, opened; it asks its own server only, and the console stays empty."""
    requested(driver), complaints(driver)  # of the test before
    opened = Page(driver, client)
    yield opened
    origin = f"http://127.0.0.1:{client.port}/"
    asked = requested(driver)
    assert {origin, f"{origin}v1/models"} <= set(asked)
    assert all(url.startswith((origin, "data:image/svg+xml,")) for url in asked)
    assert complaints(driver) == []


class Page:
    """The page as its user sees it."""

    def __init__(self, driver: WebDriver, client: Client, width: int = 1280) -> None:
        self.driver = driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(f"http://127.0.0.1:{client.port}/")
        eventually(lambda: self.all("#model option") or self.text("#error"))

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def texts(self, selector: str) -> list[str]:
        """What elements hold, seen or not."""
        return [str(element.get_property("textContent")) for element in self.all(selector)]

    def write(self, answers: list[str], question: str = QUESTION) -> None:
        self.one("#question").send_keys(question)
        while len(self.all(".answer")) < len(answers):
            self.one("#add-answer").click()
        for field, answer in zip(self.all(".answer textarea"), answers, strict=True):
            field.send_keys(answer)

    def rank(self) -> None:
        self.one("#rank").click()
        self.wait()

    def wait(self) -> None:
        eventually(lambda: self.text("#error") or "Order:" in self.text("#status"))

    def style(self, selector: str, name: str) -> str:
        return str(self.one(selector).value_of_css_property(name))


def shown(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def test_the_ranking_is_that_of_the_server(page: Page, client: Client) -> None:
    page.write(ANSWERS)
    page.rank()
    reply = client.post("/v1/rank", ASKED).json
    assert reply["ranks"] == [2, 1, 3]
    assert page.text("#status") == "B is the best. Order: B, A, C."
    assert page.texts("#ranking .letter") == ["B", "A", "C"]
    assert page.texts("#ranking .excerpt") == [ANSWERS[1], ANSWERS[0], ANSWERS[2]]
    assert page.texts("#ranking .score") == [shown(reply["scores"][place]) for place in (1, 0, 2)]
    tokens = [score.tokens for score in MODELS["armo"].score([chat(answer) for answer in ANSWERS])]
    assert f"{tokens[1]} of 4,096 tokens" in page.texts("#ranking .facts")[0]
    assert re.fullmatch(r"[\d.]+ ms round trip, [\d.]+ ms of them in the server", page.text("#timing"))


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]


def test_every_objective_has_a_bar_for_each_answer_on_one_scale(page: Page) -> None:
    page.write(ANSWERS)
    page.rank()
    expected = [MODELS["armo"].score([chat(answer)])[0] for answer in (ANSWERS[1], ANSWERS[0], ANSWERS[2])]
    for choice in ("rewards", "coefficients", "gating"):
        page.one(f"#measures input[value={choice}]").click()
        assert page.texts("#bars th[scope=row]") == list(OBJECTIVES)
        columns = [list(getattr(score, choice).values()) for score in expected]
        rows = [value for row in zip(*columns, strict=True) for value in row]
        assert page.texts("#bars .number") == [shown(value, 3) for value in rows]
        span = max(0, *rows) - min(0, *rows)
        widths = page.driver.execute_script(
            "return [...document.querySelectorAll('#bars .fill')].map((fill) => parseFloat(fill.style.width))"
        )
        assert widths == pytest.approx([100 * abs(value) / span for value in rows], abs=1e-3)
    assert not page.one("#pairs").is_displayed()


def test_ctrl_enter_ranks_and_a_pairwise_model_shows_every_pair(page: Page, client: Client) -> None:
    Select(page.one("#model")).select_by_value("pm")
    page.write(ANSWERS)
    page.one("#question").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait()
    reply = client.post("/v1/rank", {**ASKED, "model": "pm", "details": True}).json
    order = sorted(range(3), key=lambda place: reply["ranks"][place])
    assert page.texts("#matrix th[scope=row]") == ["ABC"[place] for place in order]
    percent = [[f"{100 * probability:.1f} %" for probability in row] for row in reply["probabilities"]]
    expected = ["–" if row == column else percent[row][column] for row in order for column in order]
    assert page.texts("#matrix tbody td") == expected
    assert not page.one("#objectives").is_displayed()


def test_a_ranking_is_said_to_be_old_once_a_text_changes(page: Page) -> None:
    page.write(ANSWERS)
    page.rank()
    page.one("#answer-B").send_keys("!")
    assert "before your last change" in page.text("#status")
    page.rank()
    page.all(".answer .remove")[0].click()
    assert "before your last change" in page.text("#status")
    assert page.texts(".answer label") == ["Answer A", "Answer B"]
    assert not page.one("#example").is_enabled(), "it would replace what was written"


def test_earlier_turns_and_a_system_prompt_are_part_of_what_is_asked(page: Page, client: Client) -> None:
    page.one("summary").click()
    page.one("#system").send_keys("Be brief.")
    page.one("#add-exchange").click()
    for field, text in zip(page.all(".exchange textarea"), ("Hello", "Hi"), strict=True):
        field.send_keys(text)
    page.write(ANSWERS)
    page.rank()
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", QUESTION)]
    messages = [{"role": role, "content": content} for role, content in turns]
    asked = {"model": "armo", "messages": messages, "responses": ANSWERS, "details": True}
    reply = client.post("/v1/rank", asked).json
    (raw,) = page.texts("#raw")
    assert page.driver.execute_script("return JSON.parse(arguments[0])", raw) == reply


def test_an_error_of_the_server_is_shown_as_it_is(page: Page, client: Client) -> None:
    page.write(["Yes.", "NaN"])
    page.rank()
    refused = client.post("/v1/rank", {**ASKED, "responses": ["Yes.", "NaN"]})
    assert refused.status == 422
    assert page.text("#error") == refused.json["error"]
    assert page.one("#error").get_dom_attribute("role") == "alert"
    assert not page.one("#reply").is_displayed()


def test_markup_in_a_text_is_never_run(page: Page) -> None:
    title = page.driver.title
    page.write([MARKUP, "Yes."], question=MARKUP)
    page.rank()
    assert MARKUP in page.texts("#ranking .excerpt")
    assert page.all("#results img, #results b, #results script") == []
    assert page.driver.title == title
    with pytest.raises(JavascriptException, match="TrustedHTML"):
        page.driver.execute_script("document.getElementById('ranking').innerHTML = arguments[0]", MARKUP)
    assert [entry["source"] for entry in complaints(page.driver)] == ["security"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(page: Page, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.write(ANSWERS)
    page.rank()
    page.one("#measures input[value=rewards]").click()
    background = page.style("form", "background-color")
    assert (luminance(background) < 0.2) == (scheme == "dark")
    for selector in ("#question", ".hint", "#ranking .facts", "#ranking .score", "#bars .number", "button.remove"):
        assert contrast(page.style(selector, "color"), background) >= 4.5, selector
    assert contrast(page.style("#rank", "color"), page.style("#rank", "background-color")) >= 4.5


def luminance(color: str) -> float:
    """Relative luminance of rgb(...), WCAG 2.2."""
    levels = [int(level) / 255 for level in re.findall(r"\d+", color)[:3]]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, WCAG 2.2."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_eight_long_answers_fit_a_narrow_screen(driver: WebDriver, client: Client) -> None:
    page = Page(driver, client, width=400)
    page.write(["w" * 300] * 8)
    assert not page.one("#add-answer").is_enabled()
    page.rank()
    assert len(page.all("#ranking li")) == 8
    root = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    needed, there = page.driver.execute_script(root)
    assert needed == there


def test_every_field_has_a_name_for_those_who_cannot_see_it(page: Page) -> None:
    page.one("summary").click()
    page.one("#add-exchange").click()
    fields = page.all("select, textarea, input:not([hidden] *), button")
    assert len(fields) > 10
    assert all(field.accessible_name for field in fields if field.is_displayed())


def test_a_server_with_keys_serves_the_page_and_asks_for_one(driver: WebDriver) -> None:
    with serving(MODELS, keys=("secret",)) as client:
        page = Page(driver, client)
        assert page.text("#error") == client_without_key(client)
        page.one("#key").send_keys("secret", Keys.TAB)
        eventually(lambda: page.all("#model option"))
        page.write(ANSWERS)
        page.rank()
        assert page.texts("#ranking .letter") == ["B", "A", "C"]
        assert "secret" not in page.texts("#request")[0]
        kept = "return [localStorage.length, sessionStorage.length, document.cookie]"
        assert driver.execute_script(kept) == [0, 0, ""]


def test_models_appear_once_they_are_loaded(driver: WebDriver) -> None:
    may_load = threading.Event()

    def load() -> Any:
        assert may_load.wait(PATIENCE)
        return MODELS["armo"]

    with serving({"rm": load}) as client:
        page = Page(driver, client)
        assert page.text("#error") == "rm is being loaded"
        may_load.set()
        eventually(lambda: page.all("#model option"))
        assert page.text("#error") == ""


def client_without_key(client: Client) -> str:
    return str(Client(client.port).get("/v1/models").json["error"])


def test_the_page_is_sent_once_and_may_load_nothing_else(client: Client) -> None:
    sent = client.get("/")
    assert sent.headers["content-type"].startswith("text/html")
    assert sent.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in sent.headers["content-security-policy"]
    assert "unsafe" not in sent.headers["content-security-policy"]
    again = client.ask("GET", "/", if_none_match=sent.headers["etag"])
    assert (again.status, again.body) == (304, b"")
