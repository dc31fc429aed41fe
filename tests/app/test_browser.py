"""The page in Chromium: steps that arrive, heat maps, masks, stop, two visitors, keyboard, narrow screen, axe."""

import base64
import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.page_server import Server

from minisd.demos.inputs import SCENE
from minisd.pipeline import StableDiffusion
from minisd.sticker.world.render import render

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds, for a machine that does other work
FADED_IN = """() => [...document.querySelectorAll("article.demo")].every(each => {
  if (!each.checkVisibility()) return true
  while (each && getComputedStyle(each).opacity === "1") each = each.parentElement
  return each === null
})"""  # until then Gradio shows a result with less contrast
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found on this machine: the page is not tested"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visitor:
    """A browser window on the page, whose requests and errors are kept."""

    def __init__(self, browser: Any, server: Server, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.address)
        self.button("Draw").wait_for()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True).locator("visible=true")

    def field(self, label: str) -> Any:
        return self.page.get_by_label(label, exact=True).locator("visible=true")

    def write_prompt(self, text: str) -> None:
        self.page.get_by_label("Prompt for all tabs").fill(text)

    def open_tab(self, name: str) -> None:
        """Choose a tab where it is: a narrow page moves tabs into a menu, and not at once."""
        tab = self.page.get_by_role("tab", name=name, exact=True).locator("visible=true")
        menu = self.page.locator(".overflow-menu > button").locator("visible=true")
        for patience in (5_000, PATIENCE):
            try:
                if tab.count():
                    tab.click(timeout=patience)
                else:
                    menu.click(timeout=patience)
                    self.page.locator(".overflow-dropdown").get_by_text(name, exact=True).click(timeout=patience)
                return
            except api.TimeoutError:
                if patience == PATIENCE:
                    raise

    def upload(self, place: int, file: Path) -> None:
        self.page.locator("input[type=file]").nth(place).set_input_files(file)
        self.page.get_by_label(file.name, exact=True).wait_for()  # there when the upload has ended

    def draw(self, steps: int) -> None:
        self.page.get_by_label(re.compile("Steps")).locator("visible=true").first.fill(str(steps))
        self.page.keyboard.press("Tab")
        self.button("Draw").click()

    def result(self) -> Any:
        """A complete result, after the page has faded it in."""
        self.page.locator("article.demo .links").locator("visible=true").wait_for()
        self.page.wait_for_function(FADED_IN)
        return self.page.locator("article.demo").locator("visible=true")


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Any]:
    visitors: list[Visitor] = []

    def come(**settings: Any) -> Visitor:
        visitors.append(Visitor(browser, server, **settings))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.context.close()
        assert visitor.errors == []
        elsewhere = [url for url in visitor.requests if not url.startswith((server.address, "data:", "blob:"))]
        assert elsewhere == []  # no fonts, scripts or reports of other servers


def image_of(element: Any) -> np.ndarray:
    """The pixels of an image of the page."""
    raw = base64.b64decode(element.get_attribute("src").partition(",")[2])
    with Image.open(io.BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def expected(sd: StableDiffusion, prompt: str, steps: int) -> np.ndarray:
    return np.asarray(sd(prompt, seed=1, num_inference_steps=steps).images[0], dtype=int)


def busy() -> float:
    """The programs that want a core, for each core of this machine; where that is not known, 1."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 1


KEEP_STATUS = """() => {
  window.statuses = []
  const keep = () => document.querySelectorAll("[role=status]").forEach(each => statuses.push(each.textContent))
  new MutationObserver(keep).observe(document.body, {subtree: true, childList: true, characterData: true})
}"""  # however slow the test is beside the page


def test_the_steps_arrive_and_end_in_the_image(visit: Any, sticker: StableDiffusion) -> None:
    visitor = visit()
    visitor.write_prompt("a green star")
    visitor.page.evaluate(KEEP_STATUS)
    visitor.draw(30)
    began = time.monotonic()
    visitor.page.locator("article.demo figure img").first.wait_for()
    first = time.monotonic() - began
    visitor.result()
    seen = set(filter(re.compile(r"^Step \d+ of 30").match, visitor.page.evaluate("window.statuses")))
    print(f"first picture after {first:.1f} s; {len(seen)} steps seen")
    assert len(seen) >= 3
    last = visitor.result().locator(".last")
    assert np.abs(image_of(last) - expected(sticker, "a green star", 30)).max() <= 8
    assert last.get_attribute("alt") == "the image for 'a green star'"
    assert last.bounding_box()["width"] >= 256
    assert first < 10 * max(1, busy())


def test_pointing_at_a_word_or_choosing_it_shows_its_heat_map(visit: Any) -> None:
    visitor = visit()
    visitor.draw(4)
    result = visitor.result()

    def shown() -> list[str]:
        words = result.locator("label.word").all()
        return [
            word.inner_text().strip()
            for word in words
            if word.locator("img").count()
            and word.locator("img").evaluate("image => getComputedStyle(image).opacity") == "1"
        ]

    assert shown() == []
    result.locator("label.word", has_text="circle").hover()
    assert shown() == ["circle"]
    visitor.page.mouse.move(0, 0)
    assert shown() == []
    result.locator("label.word", has_text="square").click()
    visitor.page.mouse.move(0, 0)
    assert shown() == ["square"]
    visitor.page.keyboard.press("ArrowLeft")  # the radio buttons of the words
    assert shown() == ["blue"]
    heat, last = result.locator("label.word", has_text="blue").locator("img"), result.locator(".last")
    assert heat.bounding_box() == pytest.approx(last.bounding_box(), abs=1.5)
    assert "where the image looks" in heat.get_attribute("alt")


def given_mask(visitor: Visitor) -> np.ndarray:
    """The mask that the result of the inpainting tab shows."""
    visitor.page.get_by_label("Steps (num_inference_steps)").locator("visible=true").fill("2")
    visitor.button("Show").click()
    image = image_of(visitor.result().get_by_alt_text("the mask", exact=True))
    return image[..., 0] > 128


def test_a_mask_is_drawn_with_the_pointer(visit: Any) -> None:
    visitor = visit()
    visitor.open_tab("Inpainting")
    canvas = visitor.page.locator(".mask canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    visitor.page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.8 * box["height"])
    visitor.page.mouse.down()
    visitor.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"], steps=12)
    visitor.page.mouse.up()
    assert canvas.get_attribute("data-drawn") == "yes"
    mask = given_mask(visitor)
    height, width = mask.shape
    assert mask[int(0.8 * height), int(0.15 * width) : int(0.45 * width)].all()
    assert not mask[: int(0.6 * height)].any()
    assert not mask[:, int(0.7 * width) :].any()
    visitor.button("Clear the mask").click()
    assert canvas.get_attribute("data-drawn") == "no"


def test_a_mask_is_drawn_with_keys_and_uploaded(visit: Any, tmp_path: Path) -> None:
    visitor = visit()
    visitor.open_tab("Inpainting")
    visitor.page.locator(".mask canvas").focus()
    for key in ("ArrowUp", "ArrowUp", "Space"):
        visitor.page.keyboard.press(key)
    mask = given_mask(visitor)
    assert 0 < mask.mean() < 0.1
    visitor.page.locator(".mask canvas").focus()
    visitor.page.keyboard.press("c")
    picture = Image.new("L", (32, 32))
    picture.paste(255, (0, 0, 16, 32))
    picture.save(tmp_path / "mask.png")
    visitor.upload(1, tmp_path / "mask.png")
    visitor.page.locator("article.demo .links").locator("visible=true").evaluate("links => links.remove()")
    mask = given_mask(visitor)
    half = mask.shape[1] // 2
    assert mask[:, : half - 2].all()
    assert not mask[:, half + 2 :].any()


def test_an_upload_that_is_no_image_is_one_sentence(visit: Any, tmp_path: Path) -> None:
    visitor = visit()
    visitor.open_tab("VAE")
    (tmp_path / "image.png").write_text("<html>")
    visitor.upload(0, tmp_path / "image.png")
    visitor.button("Show").click()
    visitor.page.get_by_text(re.compile("cannot be read as an image")).first.wait_for()


STOP_AT_A_STEP = """() => new MutationObserver((_, observer) => {
  const steps = [...document.querySelectorAll("[role=status]")].some(each => each.textContent.startsWith("Step "))
  if (!steps) return
  observer.disconnect();
  [...document.querySelectorAll("button")].find(each => each.textContent.trim() === "Stop" && each.offsetParent).click()
}).observe(document.body, {subtree: true, childList: true, characterData: true})"""  # sooner than the test could


def test_a_run_stops(visit: Any) -> None:
    visitor = visit()
    visitor.page.evaluate(STOP_AT_A_STEP)
    visitor.draw(100)
    stopped = visitor.page.get_by_text(re.compile(r"^Stopped: the image of step \d+ of 100"))
    stopped.wait_for()
    assert visitor.page.locator(".seen .last").count() == 1


def test_two_visitors_at_once(visit: Any, sticker: StableDiffusion) -> None:
    visitors = visit(), visit()
    prompts = "a green star", "two yellow hearts"
    for visitor, prompt in zip(visitors, prompts, strict=True):
        visitor.write_prompt(prompt)
        visitor.draw(20)
    for visitor, prompt in zip(visitors, prompts, strict=True):
        image = image_of(visitor.result().locator(".last"))
        assert np.abs(image - expected(sticker, prompt, 20)).max() <= 8


def test_the_keyboard_alone_is_enough(visit: Any) -> None:
    page = visit().page
    focused = "document.activeElement.innerText || document.activeElement.ariaLabel || document.activeElement.tagName"

    def go_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(focused).strip() == name:
                return
        raise AssertionError(f"the Tab key does not reach {name}")

    page.get_by_label("Prompt for all tabs").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("a blue square")
    go_to("Draw with another seed")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.locator(".seen .last").wait_for()
    page.get_by_label("Prompt for all tabs").focus()
    go_to("Tokenizer")
    page.keyboard.press("Enter")
    go_to("Show")
    page.keyboard.press("Space")
    page.get_by_text("Tokenizer: a prompt becomes numbers").wait_for()


@pytest.mark.parametrize("tab", ["Draw", "Tokenizer", "Inpainting"])
def test_a_narrow_screen_scrolls_down_only(visit: Any, tab: str) -> None:
    visitor = visit(width=360)
    visitor.open_tab(tab)
    visitor.button("Draw" if tab == "Draw" else "Show").click()
    visitor.result()
    widths = visitor.page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert max(widths) <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visitor = visit(scheme=scheme)
    for tab in ("Draw", "Tokenizer", "VAE", "Inpainting"):
        visitor.open_tab(tab)
        visitor.button("Draw" if tab == "Draw" else "Show").click()
        visitor.result()
        found = axe.run(visitor.page).response["violations"]
        assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found] == [], tab


def test_links_lead_to_source_and_lesson(visit: Any) -> None:
    visitor = visit()
    visitor.open_tab("Tokenizer")
    visitor.button("Show").click()
    links = visitor.result().locator(".links a")
    addresses = [links.nth(k).evaluate("link => link.href") for k in range(links.count())]
    answers = [visitor.page.request.get(address) for address in addresses]
    assert [answer.status for answer in answers] == [200] * len(addresses)
    assert "class Tokenizer" in answers[0].text()
    assert len(addresses) == 2


def test_the_scene_below_the_mask_is_that_of_the_demo(visit: Any) -> None:
    visitor = visit()
    visitor.open_tab("Inpainting")
    canvas = visitor.page.locator(".mask canvas")
    side = int(canvas.get_attribute("width"))
    pixels = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    shown = np.asarray(pixels).reshape(side, side, 4)[..., :3]
    scene = np.asarray((render([SCENE], side)[0].permute(1, 2, 0) + 1) * 127.5)
    assert np.median(np.abs(shown - scene)) <= 2
