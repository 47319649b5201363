"""The page in a real browser: renders offline, sorts, tells its figures, runs no one's code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmfit.records import Comparison, Roofline
from llmfit.report.html.page import _titles, render_page
from llmfit.testing import make_comparison, make_model, make_record, make_server
from llmfit.trend_records import Observation, Regression, Report, Series, SeriesKey

pytestmark = pytest.mark.slow

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def compared(name: str = "meta-llama/Llama-3.1-8B") -> Comparison:
    """Five rows, one of which failed."""
    rows = [
        make_record("bf16", tokens_per_s=38, peak_gb=16.0, perplexity=6.14),
        make_record("nf4", tokens_per_s=42, peak_gb=4.9, perplexity=6.47, kl_divergence=0.03),
        make_record("awq", tokens_per_s=112, peak_gb=4.7, perplexity=6.35, kl_divergence=0.02),
        make_record("gguf", tokens_per_s=9, peak_gb=5.0, perplexity=6.42, device="cpu"),
    ]
    limit = Roofline(limit_tokens_per_s=200.0, fraction=0.4)
    failed = replace(
        make_record("int8", acc_norm=None, perplexity=None),
        status="failed",
        reason=f"no kernel {EVIL}",
        decode=None,
        memory=None,
    )
    return make_comparison(
        [*(replace(row, roofline=limit) for row in rows), failed],
        run_id="r9",
        budget_bytes=8 * 10**9,
        model=make_model(name=name),
    )


def report_of(comparison: Comparison) -> Report:
    """With ten nights of speed, of which the last three are slower."""
    series = tuple(
        Series(
            key=SeriesKey(
                machine="lab",
                model=comparison.model.name,
                backend=backend,
                settings="s",
                metric=metric,
            ),
            label=backend,
            better="higher" if metric.startswith("decode") else "lower",
            points=tuple(
                Observation(
                    run_id=f"r{night}",
                    started_at=f"2026-01-{night + 1:02d}T03:00:00+00:00",
                    value=level * (0.75 if metric.startswith("decode") and night > 6 else 1),
                    low=None,
                    high=None,
                )
                for night in range(10)
            ),
        )
        for backend, level in (("bf16", 38.0), ("nf4", 42.0))
        for metric in ("decode.tokens_per_s", "perplexity.token")
    )
    worse = tuple(
        Regression(
            key=each.key,
            label=each.label,
            before=40.0,
            after=30.0,
            change=-0.25,
            threshold=0.05,
            since_run="r7",
            since="2026-01-08",
            good_run="r6",
            causes=(f"driver 580 → {EVIL}",),
        )
        for each in series
        if each.key.metric.startswith("decode")
    )
    return Report(
        title=f"Nightly {EVIL}",
        made_at="2026-01-10T04:00:00+00:00",
        comparisons=(comparison,),
        series=series,
        regressions=worse,
        baseline="history",
        servers=(
            make_server("a", model=comparison.model.name, backend="nf4"),
            make_server("b", model=EVIL),
        ),
        command=f"llmfit report {EVIL}",
    )


def test_comparisons_of_one_model_have_names_of_their_own() -> None:
    """By their workload, and where that is the same by when they began; one alone by its model."""
    first = make_comparison([make_record("bf16", started_at="2026-01-02T03:04:05+00:00")])
    later = make_comparison([make_record("bf16", started_at="2026-01-03T03:04:05+00:00")])
    longer = replace(first, workload=replace(first.workload, prompt_tokens=2048))
    name = "meta-llama/Llama-3.1-8B"
    assert _titles([first]) == [name]
    assert _titles([longer, first]) == [
        f"{name} · 2048 + 128 tokens, batch 1", f"{name} · 512 + 128 tokens, batch 1",
    ]  # fmt: skip
    assert _titles([first, later]) == [
        f"{name} · 512 + 128 tokens, batch 1 · 2026-01-02 03:04:05",
        f"{name} · 512 + 128 tokens, batch 1 · 2026-01-03 03:04:05",
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    told = os.environ.get("LLMFIT_CHROMIUM")
    found = told or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no Chromium is here; scripts/chromium installs one")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


class Page:
    """A page that was opened, what it said and what it asked for."""

    def __init__(self, browser: Any, file: Path, **settings: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab = browser.new_context(**settings).new_page()
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector(".chart .main-svg")
        self.file = file

    def column(self, number: int) -> list[str]:
        """A column of the comparison's table."""
        cells = self.tab.locator(f"#run-0 ~ .scroll tbody tr > :nth-child({number})")
        return [text.strip() for text in cells.all_inner_texts()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The page of an ordinary report."""
    path = tmp_path / "report.html"
    path.write_text(render_page(report_of(compared())), encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Any, file: Path) -> Page:
    """It, opened."""
    return Page(browser, file)


def test_it_renders_without_an_error_or_a_request(page: Page, tmp_path: Path) -> None:
    """All plots are drawn; nothing but the file itself was asked for. A screenshot is kept."""
    assert page.said == []
    assert page.asked == [page.file.as_uri()]
    assert page.tab.locator(".chart").count() == page.tab.locator(".chart .main-svg").count() / 3
    assert page.tab.locator(".chart").count() == 5
    folder = Path(os.environ.get("LLMFIT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.tab.screenshot(path=folder / "report.png", full_page=True)
    assert (folder / "report.png").stat().st_size > 50_000


def test_a_head_sorts_by_its_figures_both_ways(page: Page) -> None:
    """9 before 42 before 112, as text would not; what is not known stays last."""
    head = page.tab.get_by_role("button", name="tokens/s median ±").first
    head.click()
    rising = [name.split()[0].rstrip("1") for name in page.column(1)]
    assert rising == ["gguf", "bf16", "nf4", "awq", "int8"]
    sorted_by = page.tab.locator("th[aria-sort]")
    assert sorted_by.count() == 1 and sorted_by.get_attribute("aria-sort") == "ascending"
    head.click()
    falling = [name.split()[0].rstrip("1") for name in page.column(1)]
    assert falling == ["awq", "nf4", "bf16", "gguf", "int8"]


def test_a_head_sorts_by_the_keyboard_too(page: Page) -> None:
    """Tab leads there, Enter sorts."""
    page.tab.get_by_role("button", name="memory").first.focus()
    page.tab.keyboard.press("Enter")
    assert page.column(1)[0] == "awq"


def test_a_hover_tells_the_figures(page: Page) -> None:
    """Name, speed, quality and memory of the mark under the mouse."""
    marks = page.tab.locator("#run-0-chart-0 .scatterlayer .trace .points path")
    box = marks.nth(2).bounding_box()
    assert box is not None
    page.tab.locator("#run-0-chart-0").scroll_into_view_if_needed()
    box = marks.nth(2).bounding_box()
    assert box is not None
    page.tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.tab.wait_for_selector("#run-0-chart-0 .hovertext")
    told = page.tab.locator("#run-0-chart-0 .hovertext").first.text_content()
    for part in ("awq", "112", "6.35", "4.70 GB"):
        assert part in str(told)


def test_names_and_reasons_stay_text(browser: Any, tmp_path: Path) -> None:
    """A model, a reason, a cause, a title and a command that are scripts."""
    path = tmp_path / "evil.html"
    path.write_text(render_page(report_of(compared(EVIL))), encoding="utf-8")
    page = Page(browser, path)
    page.tab.wait_for_timeout(300)
    assert page.said == [] and page.asked == [path.as_uri()]
    assert "owned" not in page.tab.title().replace(EVIL, "")
    assert page.tab.locator("h2#run-0").inner_text() == EVIL
    assert page.tab.locator("img").count() == 0
    assert "document.title='owned'" in page.tab.locator(".notes").inner_text()


def test_servers_stand_beside_what_was_measured_without_them(page: Page) -> None:
    """A line a level, with the decode rate of the same model and format in the comparison."""
    table = page.tab.get_by_role("region", name="Servers")
    first, second = table.locator("tbody tr").all()
    cells = [cell.strip() for cell in first.locator("td").all_inner_texts()]
    assert cells[:5] == ["nf4", "lab", "2", "6.00", "42.0"]
    assert cells[5:7] == ["250 ms", "250 ms"]
    assert second.locator("th").inner_text() == EVIL
    assert second.locator("td").all_inner_texts()[4] == "–"


def test_plots_have_their_figures_as_a_table(page: Page) -> None:
    """For those who do not see them, named by what they show."""
    for chart in page.tab.locator(".chart").all():
        assert chart.get_attribute("role") == "img" and chart.get_attribute("aria-label")
    page.tab.get_by_text("The figures as a table").first.click()
    table = page.tab.get_by_role("region", name="Speed against quality as a table")
    assert "awq" in table.inner_text() and "112" in table.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_the_reader_s_and_can_be_read(browser: Any, file: Path, scheme: str) -> None:
    """Text against its ground has a contrast of 4.5 or more (WCAG 2.1, AA)."""
    page = Page(browser, file, color_scheme=scheme)
    for selector in ("body", ".quiet", "a", "td", "tr.pick td", "tr.failed td", "figcaption"):
        ratio = page.tab.evaluate(_CONTRAST, selector)
        assert ratio >= 4.5, (selector, ratio)
    dark = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") is (scheme == "light")
    paper = page.tab.locator(".chart .bg").first.evaluate("node => getComputedStyle(node).fill")
    assert (paper == "rgb(255, 255, 255)") is (scheme == "light")


def test_it_fits_a_phone(browser: Any, file: Path) -> None:
    """Only tables scroll sideways, not the page; what is to be touched is large enough."""
    page = Page(browser, file, viewport={"width": 360, "height": 740})
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.tab.locator("th button").all():
        box = button.bounding_box()
        assert box is not None and box["height"] >= 24


def test_it_is_a_document_for_screen_readers(page: Page) -> None:
    """A language, one first heading, landmarks, heads with a scope, ids that are unique."""
    tab = page.tab
    assert tab.locator("html").get_attribute("lang") == "en"
    assert tab.locator("h1").count() == tab.get_by_role("main").count() == 1
    assert tab.locator("th:not([scope])").count() == 0
    assert tab.locator("a.skip").get_attribute("href") == "#content"
    ids = tab.evaluate("[...document.querySelectorAll('body > :not(.js) [id]')].map(e => e.id)")
    own = [name for name in ids if name.startswith("run-")]
    assert len(own) == len(set(own))


_CONTRAST = """selector => {
  const node = document.querySelector(selector);
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const ground = start => {
    for (let at = start; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const light = colour => {
    const [r, g, b] = colour.map(v => v / 255).map(
      v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(numbers(getComputedStyle(node).color)), light(ground(node))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
