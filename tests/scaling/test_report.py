"""The page: what its file holds, and, in a browser, that its answers are those of the package."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from vlmkit.cli.frontier import frontier
from vlmkit.errors import UserError
from vlmkit.scaling.bootstrap import residual_bootstrap
from vlmkit.scaling.budgets import Budget, Unit, parse_budget
from vlmkit.scaling.cost import FullCost, LatencyCost, LLMCost, MemoryCost, VisionSide
from vlmkit.scaling.fit import fit_law
from vlmkit.scaling.latency import LatencyTable, Timing
from vlmkit.scaling.measurements import load_published
from vlmkit.scaling.report import Report, ReportedFamily, write_report
from vlmkit.scaling.workload import Workload

APP = typer.Typer()
APP.command()(frontier)
TABLES = load_published()
NAMES = ("0.5b", "1.8b", "4b", "7b", "14b", "32b")
LLMS = [TABLES.find_llm(name) for name in NAMES]
TOKENS = sorted({row.visual_tokens for row in TABLES.rows})
BUDGETS = {
    "llm": (6e10, 1.23e12, 5e12),
    "full": (6e11, 2e12, 7e12),
    "memory": (2e9, 17e9, 9e10),
    "latency": (25, 80, 900),
}


def fitted(name, form, seed):
    rows = TABLES.of(name)
    columns = [row.llm.billions for row in rows], [row.visual_tokens for row in rows], [row.error for row in rows]
    fit = fit_law(form, *columns)
    draws = residual_bootstrap(fit, draws=150, seed=seed).laws
    return ReportedFamily(name, fit, rows, draws, TABLES.notes.get(name, ()))


def times(llm, tokens):
    """Any table will do, as long as it is neither linear nor complete."""
    size = llm.billions
    parts = {"tower": 8.0, "compressor": 0.01 * tokens, "prefill": size * (3 + 0.05 * tokens**1.1), "decode": 2 + size}
    return Timing(llm.name, tokens, "t", 336, "avgpool", 1.0, {name: [time] for name, time in parts.items()})


TIMES = tuple(times(llm, tokens) for llm in LLMS[1:] for tokens in (4, 50, 576))
TABLE = LatencyTable("a machine", "2026-01-01", {}, "bf16", "cuda", 1, Workload(), TIMES)


def costs(work, compressor="quecc"):
    vision = VisionSide.of(compressor=compressor)
    models = [LLMCost(work), FullCost(work, vision), MemoryCost(work, vision)]
    fits_table = replace(work, new_tokens=1, text_tokens=50) == TABLE.workload
    return {model.name: model for model in (*models, *([LatencyCost(TABLE, work)] if fits_table else []))}


@cache
def families():
    return [fitted("reasoning", "product", 1), fitted("ocr", "additive", 2)]


def report():
    return Report(
        families(),
        LLMS,
        TOKENS,
        list(costs(Workload()).values()),
        budgets={Unit.flops: Budget(5e12, Unit.flops)},
        chosen_llms=[llm.name for llm in LLMS[:5]],
    )


def known(model, llm, tokens):
    try:
        return model.cost(llm, tokens)
    except UserError:
        return np.inf


def expected(model, budget, mix, llms=LLMS[:5], tokens=TOKENS, limits=()):
    """The best choice by the package's own laws and costs; None: nothing fits."""
    shares = [(family, share) for family, share in zip(families(), mix, strict=True) if share]

    def error(llm, v):
        return float(sum(share / sum(mix) * family.fit.law.predict(llm.billions, v) for family, share in shares))

    ranked = sorted(
        (error(llm, v), known(model, llm, v), llm, v)
        for llm, v in itertools.product(llms, tokens)
        if known(model, llm, v) <= budget and all(known(other, llm, v) <= most for other, most in limits)
    )
    if not ranked:
        return None
    N, V = [llm.billions for *_, llm, _ in ranked], [v for *_, v in ranked]
    drawn = sum(share / sum(mix) * family.draws.predict(N, V) for family, share in shares)
    ends = np.quantile(drawn[:, 0], [0.025, 0.975], method="inverted_cdf")
    best = ranked[0]
    return best[2].name, best[3], best[0], best[1], float((drawn[:, 0] == drawn.min(1)).mean()), *ends


def test_the_file_is_whole_and_asks_for_nothing_else(tmp_path):
    path = tmp_path / "new" / "report.html"
    hostile = replace(families()[0], notes=["</script><b>[[SCRIPT]]"])
    write_report(replace(report(), families=[hostile, families()[1]]), path)
    page = path.read_text(encoding="utf-8")
    assert "[[STYLE]]" not in page and "[[DATA]]" not in page
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\((?!#)|fetch\(|https?://(?!www\.w3\.org/2000/svg)", page)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data[1])["families"][0]["notes"] == ["</script><b>[[SCRIPT]]"]
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_report_is_a_html_file(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.html"):
        write_report(report(), tmp_path / "report.pdf")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(report(), path)
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(5000)
    page.requested, page.errors = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    yield page
    assert page.requested == [address] and not page.errors
    context.close()


def settle(page):
    """Wait for the frame in which the page takes the settings in."""
    page.evaluate("() => new Promise(requestAnimationFrame)")


def answer(page):
    """LLM and visual tokens of the answer, and its error to the last digit."""
    settle(page)
    return (
        page.locator("#best-llm").get_attribute("value"),
        int(page.locator("#best-tokens").get_attribute("value")),
        float(page.locator("#best-error").get_attribute("value")),
    )


def test_a_slider_that_moves_changes_the_answer(page):
    work = Workload()
    first = answer(page)
    assert first == pytest.approx(expected(LLMCost(work), 5e12, (50, 50))[:3])
    page.focus("#budget-slider")
    for _ in range(3):
        page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    settle(page)
    budget = parse_budget(page.input_value("#budget")).amount
    assert budget < 2e12
    moved = answer(page)
    assert moved != first and moved == pytest.approx(expected(LLMCost(work), budget, (50, 50))[:3])
    page.focus("#text-tokens-slider")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    settle(page)
    work = Workload(text_tokens=int(page.input_value("#text-tokens")))
    assert work.text_tokens == 200
    assert answer(page) == pytest.approx(expected(LLMCost(work), budget, (50, 50))[:3])
    page.focus("input[name=ocr]")
    page.keyboard.press("Home")
    assert answer(page) == pytest.approx(expected(LLMCost(work), budget, (100, 0))[:3])
    assert page.locator("input[name=reasoning] + output").inner_text() == "100 %"
    page.get_by_role("checkbox", name="qwen1.5-32b").focus()
    page.keyboard.press("Space")
    page.fill("#budget", "1e15")
    assert answer(page) == pytest.approx(expected(LLMCost(work), 1e15, (100, 0), LLMS)[:3])
    page.get_by_role("status").filter(has_text="qwen1.5-32b").wait_for(state="attached")
    page.get_by_role("button", name="Reset").click()
    assert answer(page) == first


SET_ALL = """async (cases) => {
  const put = (node, value) => { node.value = value; node.dispatchEvent(new Event("input", { bubbles: true })); };
  const id = (name) => document.getElementById(name);
  const found = [];
  for (const wanted of cases) {
    document.querySelector(`#cost [value=${wanted.cost}]`).click();
    for (const [name, value] of Object.entries(wanted.boxes)) put(id(name), value);
    put(document.querySelector("#mix [name=reasoning]"), wanted.reasoning);
    const boxes = [[id("cached-text"), wanted.cached]];
    for (const input of document.querySelectorAll("#tokens input"))
      boxes.push([input, wanted.tokens.includes(Number(input.value))]);
    for (const [box, on] of boxes) if (box.checked !== on) box.click();
    await new Promise(requestAnimationFrame);
    const facts = [...id("answer-facts").querySelectorAll("data")].map((node) => Number(node.value));
    const best = id("best-llm") && [id("best-llm").value, Number(id("best-tokens").value), ...facts];
    found.push(best && [...best, ...result.within[0].interval]);
  }
  return found;
}"""


@pytest.mark.slow
def test_the_page_computes_what_the_package_computes(page):
    settings = [
        (name, budget, reasoning, work, tokens)
        for name in BUDGETS
        for work in (Workload(), Workload(50, 40), Workload(400, 3, cached_text=True, batch_size=16), Workload(0))
        if name in costs(work)
        for budget in BUDGETS[name]
        for reasoning, tokens in ((100, TOKENS), (30, TOKENS[2:5]))
    ]
    units = {"llm": "", "full": "", "memory": "B", "latency": "ms"}
    cases = [
        {
            "cost": name,
            "cached": work.cached_text,
            "reasoning": reasoning,
            "tokens": tokens,
            "boxes": {
                "budget": f"{budget}{units[name]}",
                "text-tokens": work.text_tokens,
                "new-tokens": work.new_tokens,
                "batch-size": work.batch_size,
            },
        }
        for name, budget, reasoning, work, tokens in settings
    ]
    found = page.evaluate(SET_ALL, cases)
    answered = 0
    for (name, budget, reasoning, work, tokens), got in zip(settings, found, strict=True):
        want = expected(costs(work)[name], budget, (reasoning, 100 - reasoning), tokens=tokens)
        assert (got is None) == (want is None), (name, budget, work)
        if want:
            assert got[:2] == list(want[:2]), (name, budget, reasoning, work)
            assert got[2:] == pytest.approx(want[2:], rel=1e-9), (name, budget, reasoning, work)
            answered += 1
    assert answered > 60


LAWS_AT = """([form, law, points, asks]) => [
  points.map(([N, V]) => LAWS[form](law, N, V)),
  asks.map(([textTokens, flops]) => optimalTokens({ form, law }, textTokens, flops)),
]"""


@pytest.mark.parametrize("form", ["product", "additive", "log-linear"])
def test_every_law_of_the_page_is_that_of_the_package(form, page):
    law = fitted("reasoning", form, 1).fit.law
    points = [(N, V) for N in (0.3, 4.0, 70.0) for V in (1, 37, 576)]
    asks = [(text, flops) for text in (0, 10, 50, 400) for flops in (1e11, 1e12, 2e13)]
    errors, optima = page.evaluate(LAWS_AT, [form, law.parameters, points, asks])
    assert errors == pytest.approx([float(law.predict(N, V)) for N, V in points], rel=1e-12)
    ends = TOKENS[0], TOKENS[-1]
    assert optima == pytest.approx([float(law.optimal_visual_tokens(text, ends, flops)) for text, flops in asks])
    assert form != "additive" or len({*optima}) > 3


@pytest.mark.parametrize("text_tokens", [20, 50, 80])
def test_times_beside_text_of_any_length_are_those_of_the_package(text_tokens, page):
    page.fill("#text-tokens", str(text_tokens))
    page.locator("#cost [value=latency]").click()
    settle(page)
    cost = LatencyCost(TABLE, Workload(text_tokens))
    asked = [[llm.name, count] for llm in LLMS[1:] for count in (4, 10, 34, 50, 300, 546, 576)]
    found = page.evaluate(
        "(asked) => asked.map(([name, V]) => costOf('latency', { name }, V, settings.work) ?? Infinity)", asked
    )
    assert found == pytest.approx([known(cost, TABLES.find_llm(name), count) for name, count in asked], rel=1e-12)
    assert (np.inf in found) is (text_tokens != 50)
    page.fill("#budget", "80ms")
    assert answer(page) == pytest.approx(expected(cost, 80, (50, 50))[:3])


@pytest.mark.parametrize("cached", [False, True])
def test_what_was_measured_with_the_times_goes_back_to_it(cached, browser, tmp_path):
    table = replace(TABLE, workload=Workload(cached_text=cached))
    models = [LLMCost(table.workload), LatencyCost(table, table.workload)]
    path = tmp_path / "report.html"
    write_report(Report(families(), LLMS, TOKENS, models, table.workload), path)
    page = browser.new_page()
    page.goto(path.as_uri())
    page.fill("#text-tokens", "80")
    page.fill("#batch-size", "4")
    page.set_checked("#cached-text", not cached)
    page.locator("#cost [value=latency]").click()
    settle(page)
    assert page.evaluate("[settings.work.textTokens, settings.work.cachedText, settings.work.batchSize]") == [
        50 if cached else 80,
        cached,
        1,
    ]
    assert [page.is_disabled(f"#{box}") for box in ("text-tokens", "cached-text", "batch-size")] == [cached, True, True]
    page.close()


def test_the_additive_optimum_needs_a_budget_of_the_prefill(page):
    cells = page.locator("#families tr", has_text="ocr").locator("td")
    assert float(cells.last.inner_text()) > 1
    page.locator("#cost [value=full]").click()
    settle(page)
    assert cells.last.inner_text() == "depends on the budget of 2N(Q + V)"


@pytest.mark.usefixtures("laws_fitted_once")
def test_the_command_on_the_page_of_the_command_line_gives_its_answer(browser, tmp_path):
    path = tmp_path / "report.html"
    made = CliRunner().invoke(APP, ["--budget", "3e12", "--budget", "30GB", "--cost", "full", "--html", str(path)])
    assert made.exit_code == 0, made.output
    page = browser.new_page()
    page.goto(path.as_uri())
    page.focus("#budget-slider")
    for moved in ("PageDown", "Home", "ArrowRight"):
        page.keyboard.press(moved)
        if moved == "Home":
            page.fill("input[name=reasoning]", "30")
            page.check("#cached-text")
            page.focus("#budget-slider")
            page.keyboard.press("PageUp")
        best = answer(page)
        words = shlex.split(page.inner_text("#command"))
        assert words[:2] == ["vlmkit", "frontier"]
        printed = json.loads(CliRunner().invoke(APP, [*words[2:], "--json"]).stdout)["answers"]["mix"]["best"]
        assert best[:2] == (printed["llm"], printed["visual_tokens"])
        assert best[2] == pytest.approx(printed["error"], rel=1e-9)
        ends = page.evaluate("[...result.within[0].interval, result.within[0].share, result.within[0].cost]")
        assert ends == pytest.approx([*printed["interval"], printed["probability"], printed["costs"]["full"]], rel=1e-9)
    page.close()


@pytest.mark.usefixtures("laws_fitted_once")
@pytest.mark.parametrize("question", [["--target-error", "0.5"], ["--compare", "7b:64"]])
def test_a_page_is_for_a_budget(question, tmp_path):
    refused = CliRunner().invoke(APP, [*question, "--html", str(tmp_path / "report.html")])
    assert isinstance(refused.exception, UserError) and "for a budget" in str(refused.exception)
    assert not list(tmp_path.iterdir())


def test_a_second_limit_holds_beside_the_budget(page):
    work = Workload()
    page.get_by_label("Memory at most").fill("9 GB")
    limits = [(costs(work)["memory"], 9e9)]
    assert answer(page) == pytest.approx(expected(LLMCost(work), 5e12, (50, 50), limits=limits)[:3])
    page.get_by_label("Memory at most").fill("1 KB")
    settle(page)
    assert "No choice is left" in page.inner_text("#answer")


def test_what_cannot_be_is_said(page):
    page.fill("#budget", "five")
    assert "Write an amount like 5TFLOPs" in page.inner_text("#budget-hint")
    assert page.get_attribute("#budget", "aria-invalid") == "true"
    page.fill("#budget", "1e9")
    settle(page)
    cheapest = "Nothing fits: the cheapest, qwen1.5-0.5b with 1 visual token, costs 51 GFLOPs."
    assert page.inner_text("#answer") == cheapest
    page.fill("#budget", "5e12")
    page.get_by_label("Time", exact=True).check()
    settle(page)
    assert page.is_disabled("#batch-size")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_in_the_light_and_in_the_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    # The chart is drawn anew in a frame after that in which its place became narrower.
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    page.wait_for_function("document.querySelector('#chart svg').getBoundingClientRect().right <= 390")
    series = [f"series-{number}" for number in range(7)]
    names = ["ink", "soft", "accent", "accent-ink", "surface", *series]
    colour = dict(zip(names, page.evaluate(COLOURS, names), strict=True))
    assert all(contrast(colour[name], colour["surface"]) >= 4.5 for name in ("ink", "soft", "accent"))
    assert contrast(colour["accent-ink"], colour["accent"]) >= 4.5
    assert all(contrast(colour[name], colour["surface"]) >= 3 for name in series)


@pytest.mark.slow
def test_every_control_has_a_name_and_the_keyboard_reaches_it(page):
    assert page.evaluate(UNNAMED) == 0
    reached = []
    page.focus("#budget-slider")
    for _ in range(32):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
        page.keyboard.press("Tab")
    assert {"budget", "llm", "cached-text", "new-tokens", "qwen1.5-14b", "576", "more"} <= set(reached)


COLOURS = """(names) => {
  const style = getComputedStyle(document.documentElement);
  return names.map((name) => style.getPropertyValue(`--${name}`).trim());
}"""
UNNAMED = """() => [...document.querySelectorAll("input, button")].filter(
  (one) => !one.labels?.length && !one.ariaLabel && !one.textContent).length"""


def contrast(one, other):
    """The ratio of WCAG 2: 4.5 for text, 3 for graphics."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)
