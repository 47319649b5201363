"""Texts from models, libraries and imported files stay text in every output.

Each output of one hostile record is read by a parser that is not ours.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hostile import EVIL, comparison, poisoned, report, server, study

from llmfit.cli._console import complain, say
from llmfit.cli._progress import Bars, Lines, Silent
from llmfit.errors import StoreError
from llmfit.records import Comparison, Workload, from_json, to_json
from llmfit.report import render
from llmfit.report._text import in_chat, in_csv, in_markdown, markdown_code, plain

CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def controls(text: str, *, allowed: str = "\n") -> set[str]:
    """Characters of ``text`` that a terminal may obey, and those that are none."""
    return {
        repr(char)
        for char in text
        if char not in allowed
        and (unicodedata.category(char) in CONTROLS or ord(char) & 0xFFFE == 0xFFFE)
    }


# ---------------------------------------------------------------- terminal


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [60, 120, 400])
@pytest.mark.parametrize("predicted_only", [False, True])
def test_a_table_obeys_nothing(color: bool, width: int, predicted_only: bool) -> None:
    """No control code but the colours that are ours; rich's markup is text."""
    made = comparison(predicted_only=predicted_only)
    text = render(made, "table", width=width, color=color)
    assert controls(STYLE.sub("", text) if color else text) == set()
    assert "[red]" in text and r"\x1b]0;t\x07" in text.replace("\n", "")
    codes = set(STYLE.findall(text))
    assert bool(codes) == color and not {"\x1b[31m", "\x1b[2J"} & codes


def test_the_tables_of_other_verbs_obey_nothing() -> None:
    """A plan, a path, a published table beside ours, the decision guide, a study."""
    from llmfit.path import find_path
    from llmfit.planner import plan
    from llmfit.planning.advice.advise import guide
    from llmfit.planning.comparing.reference import RTX_3090, beside
    from llmfit.report.advice import render_guide
    from llmfit.report.path import render_path
    from llmfit.report.plan import render_plan
    from llmfit.report.reference import render_reference
    from llmfit.report.server import history_line, render_server
    from llmfit.report.study import render_study

    workload = Workload(prompt_tokens=8, new_tokens=8)
    planned = poisoned(plan(None, workload=workload))
    path = poisoned(find_path(None, to_gb=0.001, workload=workload))
    advised = guide(8, "inference", False, "consumer_gpu", records=comparison().rows)
    for text in (
        render_plan(planned, "table", width=200),
        render_path(path, "table", width=200),
        render_reference(beside(comparison(), RTX_3090), "table", width=200),
        render_guide(advised, "table", width=200),
        render_study(study(), "table", width=200),
        render_server(server(), "table", width=200),
        history_line(server()),
    ):
        assert controls(text) == set()


@pytest.mark.slow
def test_pictures_hold_texts_as_they_are(tmp_path: Path) -> None:
    """A dollar sign begins no formula; the SVG is XML with no element of a name."""
    pytest.importorskip("matplotlib")
    from llmfit.report.plots import draw

    draw(study("$d$ <script>own()</script>\x1b\u202e"), [tmp_path / "x.png", tmp_path / "x.svg"])
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    assert not any(element.tag.endswith("script") for element in root.iter())
    told = "".join(root.itertext())
    assert "<script>own()</script>" in told and "$d$" in told and controls(told) == set()


@pytest.mark.parametrize("shows", [Lines, Bars])
def test_progress_obeys_nothing(shows: type[Silent], capsys: pytest.CaptureFixture[str]) -> None:
    """Labels, stages and reasons, on a terminal and without one."""
    row = comparison().rows[2]
    with shows() as watching:
        watching.row_started(row.backend, row.label, 0, 1)
        watching.progress(row.backend, EVIL, 1, 2)
        watching.row_done(row)
    told = capsys.readouterr().err
    assert "[red]" in told and controls(told) == set()


def test_a_downloads_bar_obeys_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client names the file that it downloads, and a file may be called anything."""
    from llmfit.hub_fetch import _bar

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    drawn = StringIO()
    bar = _bar(None)(desc=EVIL, total=3, file=drawn, disable=False)  # type: ignore[arg-type]
    bar.refresh()
    bar.close()
    assert "[red]" in drawn.getvalue() and controls(drawn.getvalue(), allowed="\n\r") == set()


def test_the_list_of_artifacts_obeys_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model's folder may be called anything."""
    from llmfit.cli.main import main
    from llmfit.quantize.cache import ArtifactCache

    model = tmp_path / EVIL.replace("/", "").replace("\0", "")[:120]
    model.mkdir()
    (model / "config.json").write_text("{}")
    cache = ArtifactCache(tmp_path / "ca\x1b[31mche")
    cache.get_or_make("gptq", model, {"a": EVIL}, lambda folder: (folder / "w").touch())
    for words in (["--format", "table"], ["--format", "json"]):
        assert main(["cache", "list", "--cache-dir", str(cache.root), *words]) == 0
        assert controls(capsys.readouterr().out) == set()


def test_the_list_of_backends_obeys_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another package names its format as it likes."""
    from llmfit.cli.main import main

    about = tmp_path / "evil-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[llmfit.backends]\nevil\u202e = evil:Evil\n")
    code = f"from llmfit.testing import FakeBackend as B\nclass Evil(B):\n    id = label = {EVIL!r}"
    (tmp_path / "evil.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for words in ([], ["--format", "json"]):
        assert main(["backends", *words]) == 0
        told = capsys.readouterr().out
        assert "HYPERLINK" in told and controls(told) == set()


# ---------------------------------------------------------------- Markdown


def rendered_markdown(text: str) -> list[Any]:
    """Tokens of the text by markdown-it, an independent parser of CommonMark and tables."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return parser.parse(text)


def kinds(tokens: list[Any]) -> dict[str, int]:
    """How often each kind of token occurs, those inside lines too."""
    counted: dict[str, int] = {}
    for token in [each for t in tokens for each in (t, *(t.children or ()))]:
        name = token.type if token.type != "html_inline" else f"html {token.content}"
        counted[name] = counted.get(name, 0) + 1
    return counted


def test_markdown_has_no_markup_but_ours() -> None:
    """No link, image, code, HTML or further heading; every table has its columns."""
    from llmfit.report.night import render_report_markdown

    made = report()
    text = render_report_markdown(made)
    assert controls(text) == set()
    found = kinds(rendered_markdown(text))
    ours = {"html <sup>", "html </sup>"}
    assert {kind for kind in found if kind.startswith("html")} <= ours
    assert not {"link_open", "image", "code_inline", "html_block", "s_open"} & found.keys()
    assert found["heading_open"] == 1 + 3 + len(made.comparisons)
    assert found["fence"] == len(made.comparisons) and "code_block" not in found
    assert found["table_open"] == 2 + len(made.comparisons)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert len(set(widths)) == 3  # columns of a regression, a comparison, a server


def test_a_study_and_a_published_table_have_no_markup_but_ours() -> None:
    """As Markdown."""
    from llmfit.planning.comparing.reference import RTX_3090, beside
    from llmfit.report.reference import render_reference
    from llmfit.report.server import render_server
    from llmfit.report.study import render_study

    for text in (
        render_study(study(), "md"),
        render_server(server(), "md"),
        render_reference(beside(comparison(), RTX_3090), "md"),
    ):
        assert controls(text) == set()
        found = kinds(rendered_markdown(text))
        assert not {"link_open", "image", "code_inline", "html_block", "s_open"} & found.keys()
        assert "html <script>" not in found and found["table_open"] == 1


@pytest.mark.parametrize(
    "start", ["- a", "+ a", "1. a", "23) a", "---", "===", "> a", "# a", "~~~", "&lt;b&gt; &amp;"]
)
def test_a_line_of_text_is_that_text_in_markdown(start: str) -> None:
    """In a paragraph and in a list, it begins no block and is no entity."""
    for before in ("", "- "):
        tokens = rendered_markdown(before + in_markdown(start))
        (line,) = [token for token in tokens if token.type == "inline"]
        assert "".join(child.content for child in line.children) == start


def test_a_command_is_a_block_of_code_whatever_is_in_it() -> None:
    """Also after a list, whose item would go on in an indented line."""
    text = "\n".join(["- a", "", *markdown_code(["x ```` <script>", "```", "- y"])])
    (block,) = [t for t in rendered_markdown(text) if t.type in ("fence", "code_block")]
    assert block.content == "x ```` <script>\n```\n- y\n"


# ---------------------------------------------------------------- HTML


class Page(HTMLParser):
    """What a page's elements are, and the text of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._charts = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element."""
        self.tags.append((tag, dict(attrs)))
        self._charts = dict(attrs).get("id") == "charts"

    def handle_data(self, data: str) -> None:
        """Keep the plots' data."""
        if self._charts:
            self.data += data


def test_a_page_has_no_element_of_a_name() -> None:
    """A model called ``<script>`` is text, in the page, in its data and in what Plotly shows."""
    from llmfit.report.html.page import render_page

    text = render_page(report())
    own = text[: text.index("<script type=")] + text[text.index("</footer>") - 9 :]
    page = Page()
    page.feed(text)
    assert [a for t, a in page.tags if t == "script"] == [
        {"type": "application/json", "id": "charts"}, {}, {},
    ]  # fmt: skip
    assert not {"img", "iframe", "b", "red"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    data = text[text.index('id="charts"') : text.index("</script>", text.index('id="charts"'))]
    assert controls(own[: own.index("<script type=")]) == set() and controls(data) == set()
    charts = json.loads(page.data)
    shown = [s for chart in charts.values() for trace in chart["data"] for s in _texts(trace)]
    names = [text for text in shown if "HYPERLINK" in text]
    assert names and not any("<script" in text or "%{x} $d$" in text for text in names)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []


# ---------------------------------------------------------------- CSV, XML, JSON, Parquet


def test_csv_computes_nothing() -> None:
    """No field begins a formula, head included; numbers stay numbers."""
    lines = list(csv.reader(StringIO(render(comparison(), "csv"))))
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    for field in (field for line in lines for field in line):
        assert field.lstrip()[:1] not in ("=", "+", "@", "\t", "\r")
        assert not field.startswith("-") or float(field) < 0
        assert controls(field) == set()
    row = dict(zip(lines[0], lines[2], strict=True))
    assert float(row["perplexity_token_difference"]) > 0
    assert float(row["hellaswag_acc_norm_difference_low"]) <= 0


@pytest.mark.parametrize(
    "text", ["=1", " =1", "\u3000=1", "＝1", "＋1", "－1", "＠x", "\n-1", "@x"]
)
def test_a_formula_gets_an_apostrophe(text: str) -> None:
    """Also behind spaces, and in full width, which some spreadsheets take for the same."""
    assert in_csv(text) == f"'{text}"


def test_junit_is_xml() -> None:
    """Every text is one that XML 1.0 can hold, and is read back."""
    from llmfit.report.junit import render_junit

    root = ElementTree.fromstring(render_junit(report()))
    assert root.tag == "testsuites" and root.get("name") is not None
    assert {element.tag for element in root.iter()} <= {
        "testsuites", "testsuite", "testcase", "failure", "error", "skipped",
    }  # fmt: skip
    assert "<script>" in str(root.find("testsuite").get("name"))  # type: ignore[union-attr]


def test_json_holds_texts_as_they_are_and_obeys_nothing() -> None:
    """It reads back equal; on a terminal it is text."""
    made = comparison()
    text = to_json(made)
    assert controls(text) == set()
    assert from_json(Comparison, text) == made
    assert json.loads(text)["model"]["name"] == EVIL


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the hostile run, as an import brings it in."""
    from llmfit.store.exchange import import_runs
    from llmfit.store.store import Store

    file = tmp_path / "result.json"
    file.write_text(to_json(comparison()))
    with Store(tmp_path / "store.db") as opened:
        assert import_runs(opened, [file]).added == 1
    return tmp_path / "store.db"


def test_parquet_holds_the_record_as_it_is(store: Path, tmp_path: Path) -> None:
    """Whole records come back equal; cells of figures are the plain texts."""
    parquet = pytest.importorskip("pyarrow.parquet")
    from llmfit.store.exchange import export_runs
    from llmfit.store.store import Store

    with Store(store) as opened:
        export_runs(opened, "parquet", tmp_path / "runs.parquet")
        kept = opened.comparison(EVIL)
    columns = parquet.read_table(tmp_path / "runs.parquet").to_pydict()
    run = json.loads(columns["llmfit_run"][0])
    assert run["comparison"]["model"]["name"] == EVIL == kept.model.name
    assert columns["model"] == [EVIL] * 3


# ---------------------------------------------------------------- verbs, chat, trackers


@pytest.mark.parametrize(
    "words",
    [
        ("history",),
        ("history", "--format", "json"),
        ("show", EVIL.replace("\x00", "")),
        ("report", "--out", "REPORT"),
        ("import", "RESULT"),
        ("export", "--format", "csv", "--out", "OUT\x1b[31m.csv"),
        ("plan", f"./{EVIL[:60]}"),
        ("compare", "--backends", EVIL[:80]),
    ],
)
def test_no_verb_prints_a_control_code(
    words: tuple[str, ...], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """On stdout and on stderr, of what is stored and of what was typed."""
    from llmfit.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMFIT_STORE", str(store))
    (tmp_path / "RESULT").write_text(to_json(comparison()))
    main(list(words))
    told = capsys.readouterr()
    assert told.out or told.err
    assert controls(told.out) == set() and controls(told.err) == set()


def test_remarks_and_errors_obey_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages of libraries are in them; a hint stays on its line."""
    say(EVIL)
    complain(StoreError(EVIL, hint=EVIL))
    told = capsys.readouterr().err
    assert controls(told) == set() and told.count("[red]") == 3
    assert len(told.splitlines()) == 2 + 2 + 1


def test_a_chat_links_and_calls_nobody() -> None:
    """Slack's controls are escaped; ``@here`` does not call."""
    from llmfit.nightly.message import message_text

    text = message_text(report())
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)|@here", text)
    assert controls(text, allowed="\n\u200b") == set()
    assert in_chat("<!channel> & @all") == "&lt;!channel&gt; &amp; @\u200ball"


def test_plain_text_stays_as_it_is() -> None:
    """What is not hostile is not touched, in any language."""
    for text in ("Qwen2.5-7B", "模型 ä ★ – 3 × 10⁹", "a_b-c=d + e"):
        assert plain(text) == in_csv(text) == in_chat(text) == text
        assert in_markdown(text) == text
