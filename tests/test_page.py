"""The page of omz_text_prediction --serve: the command as people run it, in a browser without a window."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from conftest import BIN, Command, Converted
from openvino import opset13 as ov

from omz_tools.commands import text_prediction
from omz_tools.descriptors import zoo
from omz_tools.errors import SelectionError
from omz_tools.export.tokenizer import Tokenizer
from omz_tools.generation import continuing, places
from omz_tools.generation.continuing import Wish
from omz_tools.generation.sampling import Sampling
from omz_tools.page import serving

api = pytest.importorskip("playwright.sync_api")

MINI = zoo.shipped() / "gpt-2-mini" / "gpt2-mini"
TOKENIZER = Tokenizer((MINI / "tokenizer.json",))
VOCABULARY = 2048
PROMPT = "If the class defines a\n__len__"
DRAWN = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "max_tokens": 60, "seed": "18446744073709551615"}
# Of its tokens, none comes twice; three give no text, since their character is not whole.
ODD = "<img src=x>😀\n\tend"
STOP = "<img src=x>!"
# What a browser would do beside its work.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


# ---- what is tested


@dataclass(frozen=True)
class Served:
    """A server of the page: where it is, its process, and what it has written."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.split(":")[-1].strip("/"))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        """The answer to a request, and its body; a header is left out by "", its dashes are written as underscores."""
        given = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            method, path, body if body is None or isinstance(body, bytes) else json.dumps(body),
            {name: text for name, text in given.items() if text},
        )  # fmt: skip
        answer = connection.getresponse()
        found = answer, answer.read()
        connection.close()
        return found

    @contextmanager
    def lines(self, **asked: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The lines of a text, as they come; at the end of the block, its reader goes away."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/text", json.dumps(asked), {"Content-Type": "application/json"})
        yield map(json.loads, connection.getresponse())
        connection.close()


@contextmanager
def served(folder: Path, *words: str | Path, **environment: str) -> Iterator[Served]:
    """Serve the page of a model at a port that is free."""
    log = folder.parent / f"log-{len(list(folder.parent.glob('log-*')))}"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [BIN / "omz_text_prediction", "-m", folder, "--serve", "0", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment,
        )  # fmt: skip
    with process:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url, log.read_text()
        yield Served(url, process, log)
        process.terminate()
    assert "Traceback" not in log.read_text()


def a_model(folder: Path, follows: dict[int, int], slowness: int = 0) -> Path:
    """gpt-2-mini's tokenizer, and an IR by which a token is nearly always followed by the same other one.

    After "!", its logits are no numbers. Each of `slowness` makes a token take some more ten milliseconds.
    """
    shutil.copytree(MINI, folder)
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    for before, after in follows.items():
        table[before, after] = 12
    table[TOKENIZER.encode("!")] = np.nan
    given = ov.parameter([-1, -1], np.int64, name="input")
    logits = ov.gather(ov.constant(table), given, ov.constant(0))
    if slowness:
        rng = np.random.default_rng(5)
        wide, weights = (rng.random((VOCABULARY, 1024), np.float32), rng.random((1024, 1024), np.float32))
        work = ov.tile(ov.gather(ov.constant(wide), given, ov.constant(0)), ov.constant([1, 128, 1]))
        for _ in range(slowness):
            work = ov.softmax(ov.matmul(work, ov.constant(weights), False, False), 2)
        some = ov.reduce_mean(work, ov.constant([1, 2]), keep_dims=True)
        logits = ov.add(logits, ov.multiply(some, ov.constant(np.float32(1e-9))))
    openvino.save_model(openvino.Model([logits], [given]), folder / "model.xml", compress_to_fp16=False)
    return folder


@pytest.fixture(scope="module")
def mini_page(mini: Converted) -> Iterator[Served]:
    """gpt-2-mini, with fields that the command line fills."""
    words = ("--precision", "FP32", "-i", PROMPT, *(f"--{name}={value}" for name, value in DRAWN.items()))
    with served(mini.folder, *words, "--stop", "never ever") as server:
        yield server


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that makes ODD of "Go:", and then ends; what a stop string may begin with comes at once."""
    ids = [TOKENIZER.encode("Go:")[-1], *TOKENIZER.encode(ODD), TOKENIZER.end or 0]
    assert len(set(ids)) == len(ids)
    with served(
        a_model(tmp_path_factory.mktemp("odd") / "odd", dict(pairwise(ids))), "--temperature=0", "--stop", STOP
    ) as server:
        yield server


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends, and takes long for each token."""
    ids = [*TOKENIZER.encode(" tick tock"), TOKENIZER.encode(" t")[0]]
    return a_model(tmp_path_factory.mktemp("slow") / "slow", dict(pairwise(ids)), slowness=3)


@pytest.fixture(scope="module")
def slow_page(slow_model: Path) -> Iterator[Served]:
    with served(slow_model, "--temperature=0", "--max_tokens=250") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"there is no browser: {', '.join(BROWSERS)}")
    api.expect.set_options(timeout=20_000)
    with api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=found, args=list(FLAGS)) as chromium:
            yield chromium


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page of a server; at the end, nothing has gone wrong in it, and nothing came from elsewhere."""
    wrong: list[str] = []
    with ExitStack() as stack:

        def open_page(server: Served, **settings: Any) -> Any:
            context = stack.enter_context(browser.new_context(**settings))
            context.set_default_timeout(20_000)
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
            page.on("request", lambda asked: asked.url.startswith(server.url) or wrong.append(asked.url))
            page.goto(server.url)
            api.expect(page.locator("#about")).not_to_be_empty()
            return page

        yield open_page
    # An answer that is no success is an error to the browser; those that we ask for are shown.
    assert not [text for text in wrong if "status of 400" not in text]


def shown(page: Any) -> str:
    """Prompt and text, as they stand there."""
    text: str = page.locator("#given").text_content() + page.locator("#tokens").text_content()
    return text


def ended(page: Any) -> str:
    """Wait for the end of the text; what is said of it."""
    api.expect(page.locator("#stop")).to_be_disabled()
    said: str = page.locator("#status").text_content()
    return said


def cards(page: Any) -> list[tuple[str, str]]:
    """The alternatives that are shown, with their probabilities."""
    api.expect(page.locator("#card")).to_be_visible()
    rows = page.locator("#card li").all()
    return [tuple(row.locator(part).text_content() for part in (".name", ".share")) for row in rows]


# The number of the token that has the focus, and where each one begins.
FOCUSED = "[...document.querySelectorAll('#tokens > span')].indexOf(document.activeElement)"
PLACES = "[...document.querySelectorAll('#tokens > span')].map((token) => token.getClientRects()[0])"


def nearest(page: Any, number: int) -> int:
    """The token of the line above another one that begins nearest to its column."""
    places = [(round(place["top"] / 8), place["left"]) for place in page.evaluate(PLACES)]
    line, column = places[number]
    above = max(other for other, _ in places if other < line - 1)
    on_it = [place for place, (other, _) in enumerate(places) if abs(other - above) <= 1]
    return min(on_it, key=lambda place: abs(places[place][1] - column))


def visible(name: str) -> str:
    for sign, seen in ((" ", "␣"), ("\n", "↵"), ("\t", "⇥")):
        name = name.replace(sign, seen)
    return name


# ---- what the page does


def test_the_text_of_the_page_is_that_of_the_command_line(
    mini_page: Served, open_page: Callable[..., Any], mini: Converted, run: Command
) -> None:
    words = [f"--{name}={value}" for name, value in DRAWN.items()]
    wanted = run("omz_text_prediction", "-m", mini.folder, "--precision", "FP32", "-i", PROMPT, *words).stdout
    page = open_page(mini_page)
    assert page.title() == page.locator("h1").text_content() == "gpt-2-mini"
    assert re.fullmatch(
        r"\S+/FP32/gpt-2-mini\.xml on CPU, no key/value cache: .*; 256 positions; a text ends before \"never ever\"",
        page.locator("#about").text_content(),
    )
    for name, value in DRAWN.items():
        assert page.locator(f"#{name}").input_value() == str(value)
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Control+Enter")
    assert re.fullmatch(
        rf"60 tokens, as long as asked for; [\d.]+ tokens/s, the first after \d+\.\d{{3}} s; seed {DRAWN['seed']}",
        ended(page),
    )
    assert shown(page) + "\n" == wanted
    # What is read out is the text, too.
    assert page.locator("#said").text_content() == wanted.removeprefix(PROMPT).removesuffix("\n")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copy").click()
    assert page.evaluate("navigator.clipboard.readText()") + "\n" == wanted


def test_a_seed_that_nobody_gave_is_shown_and_gives_the_text_again(
    mini_page: Served, open_page: Callable[..., Any]
) -> None:
    page = open_page(mini_page)
    page.locator("#seed").fill("")
    page.locator("#start").click()
    found = re.search(r"; seed (\d+)$", ended(page))
    first = shown(page)
    page.locator("#start").click()
    ended(page)
    assert shown(page) != first
    assert found
    page.locator("#seed").fill(found[1])
    page.locator("#start").click()
    ended(page)
    assert shown(page) == first
    assert page.locator("#keep").is_hidden()


def test_a_seed_can_be_kept(mini_page: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(mini_page)
    page.locator("#seed").fill("")
    page.locator("#start").click()
    said = ended(page)
    page.locator("#keep").click()
    assert said.endswith(f"; seed {page.locator('#seed').input_value()}")


def test_sliders_and_numbers_go_together(mini_page: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(mini_page)
    slider = page.locator("[data-of=max_tokens]")
    assert (slider.input_value(), slider.get_attribute("max")) == ("60", "256")
    slider.focus()
    for _ in range(57):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#max_tokens").input_value() == "3"
    page.locator("#temperature").fill("0.25")
    assert page.locator("[data-of=temperature]").input_value() == "0.25"
    page.keyboard.press("Enter")
    assert ended(page).startswith("3 tokens, ")
    assert page.locator("#tokens > span").count() == 3


def test_each_token_has_its_alternatives_when_pointed_at_and_when_moved_to(
    mini_page: Served, open_page: Callable[..., Any], mini: Converted
) -> None:
    model = continuing.load(places.of_path(mini.folder, "FP32"))
    how = Sampling(0.8, 40, 0.95, int(DRAWN["seed"]), alternatives=8)
    wanted = list(continuing.continued(model, [model.encode(PROMPT)], Wish(60, how)))
    page = open_page(mini_page)
    page.keyboard.press("Control+Enter")
    ended(page)
    tokens = page.locator("#tokens > span")
    assert tokens.count() == len(wanted) == 60
    card = page.locator("#card")
    api.expect(card).to_be_hidden()

    def rows(number: int) -> list[tuple[str, str]]:
        choice = wanted[number].choice
        told = list(choice.alternatives)
        if choice.token not in dict(told):
            told.append((choice.token, choice.probability))
        return [(visible(TOKENIZER.decode([token])), percent(share)) for token, share in told]

    def percent(share: float) -> str:
        return "100 %" if share >= 0.9995 else "< 0.1 %" if share < 0.001 else f"{share * 100:.1f} %"

    for number in (0, 7, 59):
        tokens.nth(number).hover()
        assert cards(page) == rows(number)
        mark = page.locator("#card li.chosen .name").text_content()
        assert mark == visible(TOKENIZER.decode([wanted[number].choice.token]))
    page.mouse.move(1, 1)
    api.expect(card).to_be_hidden()

    page.locator("#copy").focus()
    page.keyboard.press("Tab")  # into the text, at its first token
    assert cards(page) == rows(0)
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert cards(page) == rows(4)
    assert tokens.nth(4).get_attribute("aria-describedby") == "card"
    page.keyboard.press("End")
    assert cards(page) == rows(59)
    for _ in range(2):
        now = page.evaluate(FOCUSED)
        above = nearest(page, now)
        page.keyboard.press("ArrowUp")
        assert page.evaluate(FOCUSED) == above < now
        assert cards(page) == rows(above)
    page.keyboard.press("ArrowDown")
    assert above < page.evaluate(FOCUSED) < 60
    page.keyboard.press("Home")
    assert cards(page) == rows(0)
    page.keyboard.press("Escape")
    api.expect(card).to_be_hidden()
    # A place that was left is come back to.
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Tab")
    api.expect(card).to_be_hidden()
    page.keyboard.press("Tab")
    assert cards(page) == rows(1)


def test_a_text_is_shown_as_it_is_whatever_it_holds(odd_page: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(odd_page)
    page.locator("#prompt").fill("Go:")
    page.keyboard.press("Control+Enter")
    assert re.match(r"18 tokens, the model ended it; [^;]*$", ended(page))  # of a seed, nothing: none was needed
    assert shown(page) == "Go:" + ODD
    assert page.locator("#text img").count() == 0
    tokens = page.locator("#tokens > span")
    names = [tokens.nth(number).get_attribute("aria-label").split(", ")[0] for number in range(18)]
    assert names == [visible(TOKENIZER.decode([token])) for token in [*TOKENIZER.encode(ODD), TOKENIZER.end or 0]]
    assert names[14:] == ["↵", "⇥", "end", "<|endoftext|>"]
    # Those that give no text can be seen, pointed at and moved to.
    assert [tokens.nth(number).text_content() for number in range(10, 18)] == [
        "", "", "", "<img src=x>😀", "\n", "\t", "end", "",
    ]  # fmt: skip
    for number in (0, 10, 14, 17):
        tokens.nth(number).hover()
        assert cards(page)[0] == (names[number], "98.8 %")
    tokens.nth(12).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert cards(page)[0] == ("↵", "98.8 %")


def test_what_cannot_be_asked_for_is_said_as_on_the_command_line(
    mini_page: Served, open_page: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    page = open_page(mini_page)
    error = page.locator("#error")
    for name, value in (("temperature", "101"), ("top_k", "-1"), ("top_p", "2"), ("max_tokens", "0"), ("seed", "one")):
        before = page.locator(f"#{name}").input_value()
        page.locator(f"#{name}").fill(value)
        page.keyboard.press("Enter")
        ended(page)
        with pytest.raises(SystemExit):
            text_prediction.main(["-m", "a", f"--{name}={value}"])
        wanted = capsys.readouterr().err.strip().split(f"argument --{name}")[-1].split(": ", 1)[1]
        assert error.text_content() == f"{name}: {wanted}"
        assert error.get_attribute("role") == "alert"
        page.locator(f"#{name}").fill(before)
    page.locator("#prompt").fill("word " * 300)
    page.keyboard.press("Control+Enter")
    api.expect(error).to_contain_text("tokens, and the text may have 256, the prompt counted\nShorten the prompt.")
    page.locator("#prompt").fill("The")
    page.keyboard.press("Control+Enter")
    api.expect(error).to_be_hidden()
    ended(page)
    assert shown(page).startswith("The")


def test_a_model_that_fails_says_so(odd_page: Served, open_page: Callable[..., Any]) -> None:
    page = open_page(odd_page)
    page.locator("#prompt").fill("No!")
    page.keyboard.press("Control+Enter")
    error = page.locator("#error")
    api.expect(error).to_contain_text("the model gives logits that are infinite or no numbers\nIts weights hold")
    assert ended(page) == ""


@pytest.mark.parametrize("way", ["Escape", "button", "tab"])
def test_who_stops_or_leaves_lets_the_computation_end(
    slow_page: Served, open_page: Callable[..., Any], way: str
) -> None:
    page = open_page(slow_page)
    page.locator("#prompt").fill(" tick")
    page.keyboard.press("Control+Enter")
    api.expect(page.locator("#tokens > span").nth(1)).to_be_attached()
    with slow_page.lines(prompt=" tick", max_tokens=1) as lines:
        assert next(lines) == {"kind": "waiting"}
        if way == "tab":
            page.close()
        else:
            if way == "Escape":
                page.keyboard.press("Escape")
            else:
                page.locator("#stop").click()
            said = ended(page)
            count = page.locator("#tokens > span").count()
            assert said == f"Stopped after {count} tokens"
            assert count < 100
            assert shown(page).startswith(" tick tock")
        # A text of 250 tokens would go on for longer than anyone waits here for the next one.
        assert [line["kind"] for line in lines] == ["begun", "token", "ended"]


def test_two_pages_have_their_texts_one_after_the_other_and_the_server_answers_meanwhile(
    slow_page: Served, open_page: Callable[..., Any]
) -> None:
    pages = [open_page(slow_page), open_page(slow_page)]
    for page, count in zip(pages, ("12", "2"), strict=True):
        page.locator("#prompt").fill(" tick")
        page.locator("#max_tokens").fill(count)
        page.keyboard.press("Control+Enter")
        api.expect(page.locator("#stop")).to_be_enabled()
    api.expect(pages[1].locator("#status")).to_have_text("Waiting for another text to end …")
    open_page(slow_page)
    assert pages[0].locator("#stop").is_enabled()
    assert ended(pages[1]).startswith("2 tokens")
    assert pages[0].locator("#stop").is_disabled()
    assert [shown(page)[:10] for page in pages] == [" tick tock"] * 2


def test_a_server_that_has_gone_is_an_error(slow_model: Path, open_page: Callable[..., Any]) -> None:
    with served(slow_model, "--temperature=0") as server:
        page = open_page(server)
        page.locator("#prompt").fill(" tick")
        page.keyboard.press("Control+Enter")
        api.expect(page.locator("#tokens > span").first).to_be_attached()
        server.process.send_signal(signal.SIGINT)
        api.expect(page.locator("#error")).to_contain_text("Is the server still there?")
        assert server.process.wait(20) == 130
    assert server.log.read_text().endswith("Ctrl-C ends it.\nInterrupted.\n")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_and_its_letters_can_be_read_by_day_and_by_night(
    mini_page: Served, open_page: Callable[..., Any], scheme: str
) -> None:
    page = open_page(mini_page, viewport={"width": 320, "height": 600}, color_scheme=scheme)
    page.locator("#prompt").fill("word" * 20)
    page.keyboard.press("Control+Enter")
    ended(page)
    page.locator("#tokens > span").last.focus()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    box = page.locator("#card").bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 320
    for what in ("#about", "#prompt", "#temperature-hint", "#start", "#given", "#card p", "#status", "#legend .rarest"):
        assert page.evaluate(CONTRAST, what) >= 4.5, what
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(251, 250, 247)" if scheme == "light" else "rgb(22, 24, 27)"
    )


# The contrast of an element's text with what it stands on, by WCAG 2.
CONTRAST = """(what) => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const grounds = [];
  for (let part = document.querySelector(what); part; part = part.parentElement)
    grounds.unshift(getComputedStyle(part).backgroundColor);
  const light = () => [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
    .map((value) => value / 255).map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const paint = (color) => { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); };
  grounds.forEach(paint);
  const ground = light();
  paint(getComputedStyle(document.querySelector(what)).color);
  const [dark, bright] = [ground, light()].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
}"""


def test_every_field_has_a_name_and_what_has_the_focus_is_seen(
    mini_page: Served, open_page: Callable[..., Any]
) -> None:
    page = open_page(mini_page)
    page.keyboard.press("Control+Enter")
    ended(page)
    reached = []
    page.locator("#prompt").focus()
    for _ in range(13):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.of"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Tab")
    fields = ["temperature", "top_k", "top_p", "max_tokens"]
    assert reached == ["prompt", *(name for name in fields for _ in "ns"), "seed", "start", "copy", None]
    for name in ("Prompt", "Temperature", "Top k", "Top p", "Tokens", "Seed"):
        assert page.get_by_label(name, exact=True).count() == 1
    for name in fields:
        assert page.locator(f"[data-of={name}]").get_attribute("aria-label")


# ---- what the server does


def test_all_that_a_page_consists_of_comes_from_the_server_alone(mini_page: Served) -> None:
    for path in ("/", "/page.css", "/page.js", "/tokens.js", "/icon.svg", "/about", "/nowhere"):
        answer, body = mini_page.ask("GET", path)
        assert answer.status == (404 if path == "/nowhere" else 200)
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("base-uri") == "'none'"
        assert policy.pop("form-action") == "'none'"
        assert policy == dict.fromkeys(("script-src", "style-src", "img-src", "connect-src"), "'self'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert b"https:" not in body
        assert not re.findall(rb"http:(?!//www\.w3\.org/2000/svg)", body)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "192.168.1.2"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": "127.0.0.1.rebound.example:8000"}, 403),
        ({"Host": "localhost.rebound.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://localhost:8000", "Host": "localhost:8000", "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:8001", "Host": "localhost:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": ""}, 415),
    ],
)
def test_no_other_page_is_answered(mini_page: Served, headers: dict[str, str], status: int) -> None:
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    answer, body = mini_page.ask("POST", "/text", {"prompt": "The", "max_tokens": 1}, **headers)
    assert answer.status == status, body
    first = json.loads(body.splitlines()[0])
    assert first["kind"] == ("begun" if status == 200 else "failed")
    if "Host" in given:
        named = mini_page.ask("GET", "/about", Host=given["Host"])[0].status
        assert named == (403 if status == 403 and "Origin" not in given else 200)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "the request cannot be read: "),
        (b"[]", 400, "the request cannot be read: "),
        (b'{"prompt": "\xff"}', 400, "the request cannot be read: "),
        (b'{"prompt": "\\ud800"}', 400, "the request cannot be read: "),
        (b'{"prompt": ["a"]}', 400, "the request cannot be read: "),
        (b"[" * 100_000, 400, "the request cannot be read: "),
        ({"prompt": "a", "nucleus": 1}, 400, "there is no 'nucleus'\nThere are: prompt, temperature, "),
        ({"temperature": "warm"}, 400, "temperature: 'warm' is neither 0 nor a number from 0.01 to 100"),
        ({"max_tokens": 1.5}, 400, "max_tokens: '1.5' is not a positive number"),
        ({"seed": "9" * 5000}, 400, "is no whole number from 0 to 2**64 - 1"),
        ({"prompt": "a" * (1 << 18)}, 413, "The request has more than 262,144 bytes.\nShorten the prompt."),
    ],
)
def test_what_is_wrong_with_a_request_is_said(mini_page: Served, body: Any, status: int, says: str) -> None:
    answer, found = mini_page.ask("POST", "/text", body)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert says in json.loads(found)["error"]


def test_other_methods_and_places_are_refused(mini_page: Served) -> None:
    assert mini_page.ask("GET", "/text")[0].status == 405
    assert mini_page.ask("PUT", "/about", {})[0].status == 405
    assert mini_page.ask("GET", "/../setup.cfg")[0].status == 404
    assert mini_page.ask("HEAD", "/")[0].status == 200


def test_a_text_without_wishes_is_what_the_command_line_says_with_a_seed_of_its_own(mini_page: Served) -> None:
    seeds = set()
    for _ in range(2):
        with mini_page.lines(prompt="The") as lines:
            first, *tokens, last = lines
        assert len(tokens) == last["tokens"]
        assert last["why"] == "end" or last["tokens"] == DRAWN["max_tokens"]
        assert all(len(token["alternatives"]) <= 8 for token in tokens)
        seeds.add(first["seed"])
    assert len(seeds) == 2


def test_more_than_a_few_do_not_wait(slow_page: Served) -> None:
    with ExitStack() as stack:
        for _ in range(9):
            next(stack.enter_context(slow_page.lines(prompt=" tick")))
        answer, body = slow_page.ask("POST", "/text", {"prompt": " tick"})
        assert answer.status == 503
        assert json.loads(body)["error"].startswith("Too many texts are being made.")
    # When their readers have gone, so have they.
    while slow_page.ask("POST", "/text", {"prompt": " tick", "max_tokens": 1})[0].status == 503:
        time.sleep(0.1)


# ---- how it begins and ends


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_also_while_a_text_is_made_and_others_wait(slow_model: Path, number: int, status: int) -> None:
    with served(slow_model, "--temperature=0") as server, ExitStack() as stack:
        for _ in range(3):
            lines = stack.enter_context(server.lines(prompt=" tick", max_tokens=250))
            assert next(lines)["kind"] in ("begun", "waiting")
        half = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        half.sendall(
            b"POST /text HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        server.process.send_signal(number)
        assert server.process.wait(20) == status
    assert server.log.read_text().splitlines()[1:] == ["Ctrl-C ends it.", *["Interrupted."][: status == 130]]


def test_a_port_that_is_taken_is_an_error(mini: Converted, run: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("omz_text_prediction", "-m", mini.folder, "--serve", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(
        rf"Error: the page cannot be served at 127\.0\.0\.1, port {port}: Address already in use\n"
        r"Give another port, --serve 0 for any that is free",
        done.stderr,
    )
    nowhere = run("omz_text_prediction", "-m", mini.folder, "--serve=0", "--host", "192.0.2.1")
    assert "the page cannot be served at 192.0.2.1, port 0: " in nowhere.stderr
    assert "Traceback" not in nowhere.stderr


def test_port_8000_is_taken_where_none_is_named(mini: Converted) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # then somebody else has it
            stack.enter_context(socket.create_server(("127.0.0.1", 8000)))
        words = [BIN / "omz_text_prediction", "-m", mini.folder, "--serve"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert "at 127.0.0.1, port 8000: " in done.stderr


def test_other_machines_reach_it_only_when_told_so(mini_page: Served, mini: Converted) -> None:
    assert mini_page.url.startswith("http://127.0.0.1:")
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", mini_page.port)):
        pass
    assert "password" not in mini_page.log.read_text()
    with served(mini.folder, "--temperature=0", "--host", "0.0.0.0") as server:
        assert server.url.startswith("http://127.0.0.1:")
        with socket.create_connection(("127.0.0.2", server.port)):
            pass
        assert "Whoever reaches this machine can use the page; there is no password." in server.log.read_text()


def test_a_name_that_it_was_told_is_its_own(mini_page: Served, mini: Converted) -> None:
    assert mini_page.ask("GET", "/", Host="127.1")[0].status == 403
    with served(mini.folder, "--temperature=0", "--host", "127.1") as server:
        assert server.ask("GET", "/", Host=f"127.1:{server.port}")[0].status == 200


def test_an_address_of_ipv6_is_one_in_brackets() -> None:
    try:
        listener = serving.listening("::1", 0)
    except SelectionError as error:
        pytest.skip(str(error))
    with listener:
        assert serving.address(listener) == f"http://[::1]:{listener.getsockname()[1]}/"
        assert not serving.reached_from_afar(listener)


def test_the_extra_that_it_needs_is_named(mini: Converted, run: Command, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ImportError('no such thing')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("omz_text_prediction", "-m", mini.folder, "--serve", PYTHONPATH=path)
    assert done.returncode == 1
    assert "Error: starlette cannot be imported: no such thing\n" in done.stderr
    assert "pip install 'omz_tools[serve]'" in done.stderr


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a browser of ours notes the addresses that it is told to open."""
    notes, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f"#!{sys.executable}\nimport sys\nopen({str(notes)!r}, 'a').write(sys.argv[1] + '\\n')\n")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    monkeypatch.setenv("DISPLAY", ":7")
    for name in ("SSH_CONNECTION", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return notes


def test_a_browser_is_opened_for_who_sits_at_a_terminal(mini: Converted, opened: Path) -> None:
    pty = pytest.importorskip("pty")
    person, program = pty.openpty()
    words = [BIN / "omz_text_prediction", "-m", mini.folder, "--serve", "0", "--temperature=0"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=program, stderr=subprocess.DEVNULL)
    with process, os.fdopen(person) as screen:
        os.close(program)
        url = screen.readline()
        end = time.monotonic() + 60
        while not (opened.exists() and opened.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        process.terminate()
    assert opened.read_text().split() == url.split()


@pytest.mark.parametrize(
    ("environment", "terminal", "opens"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"DISPLAY": ""}, True, False),
        ({"DISPLAY": "", "WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({"SSH_CONNECTION": "192.0.2.1 5 192.0.2.2 22"}, True, False),
    ],
)
def test_no_browser_is_opened_where_nobody_sits(
    opened: Path, environment: dict[str, str], terminal: bool, opens: bool
) -> None:
    pty = pytest.importorskip("pty")
    person, program = pty.openpty() if terminal else os.pipe()
    code = "from omz_tools.page import serving; thread = serving.show('http://page/'); thread and thread.join()"
    subprocess.run([sys.executable, "-c", code], stdout=program, env=os.environ | environment, check=True)
    os.close(person)
    os.close(program)
    assert opened.exists() == opens


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--serve", "65536"], "'65536' is not a number from 0 to 65535"),
        (["--serve", "page"], "'page' is not a number from 0 to 65535"),
        (["--host", "0.0.0.0"], "--host goes with --serve"),
        (["--serve", "-i", "a", "-i", "b"], "--serve begins with one prompt"),
        (["--serve", "--batch_size", "2"], "--serve begins with one prompt"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as caught:
        text_prediction.main(["-m", "a", *words])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
