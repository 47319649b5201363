"""A message to a chat: what it says, what it must not say, and that it arrives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from llmfit.errors import StoreError, UsageError
from llmfit.nightly.message import message_text, post_message, webhook_url, without_private
from llmfit.trend_records import CellResult, NightResult, Regression, Report, SeriesKey

KEY = SeriesKey(
    machine="lab", model="org/model", backend="nf4", settings="s", metric="decode.tokens_per_s"
)
WORSE = Regression(
    key=KEY,
    label="INT4 NF4",
    before=40.0,
    after=30.0,
    change=-0.25,
    threshold=0.05,
    since_run="r4",
    since="2026-01-04",
    good_run="r3",
    causes=("driver 580 → 590",),
)


def report_of(regressions: tuple[Regression, ...] = (WORSE,), **changes: object) -> Report:
    """A report without comparisons."""
    cells = (
        CellResult(name="a", model="a", workload="", status="done"),
        CellResult(
            name="b", model="b", workload="", status="failed", reason="no folder '/home/me/b'"
        ),
    )
    night = NightResult(
        session_id="n",
        title="Lab",
        machine="lab",
        started_at="2026-01-04",
        ended_at="2026-01-05",
        cells=cells,
        baseline="history",
    )
    report = Report(
        title="Lab",
        made_at="2026-01-05T00:00:00",
        comparisons=(),
        series=(),
        regressions=regressions,
        baseline="history",
        night=night,
    )
    return replace(report, **changes)  # type: ignore[arg-type]


class _Hook(BaseHTTPRequestHandler):
    taken: ClassVar[list[tuple[str, bytes]]] = []
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.status == 0:  # hang up without an answer
            self.close_connection = True
            return
        self.taken.append((self.headers["Content-Type"], body))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hook() -> Iterator[str]:
    """A web server that takes messages."""
    _Hook.taken.clear()
    _Hook.status = 200
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/services/T0/SECRETPART"
    server.shutdown()
    server.server_close()


def test_a_message_arrives_as_slack_takes_it(hook: str) -> None:
    """``{"text": …}``, as JSON."""
    post_message(message_text(report_of()), hook)
    ((kind, body),) = _Hook.taken
    assert kind == "application/json"
    assert json.loads(body) == {"text": message_text(report_of())}


def test_it_says_metric_size_record_and_cause() -> None:
    """And what was not done."""
    text = message_text(report_of())
    assert text.startswith("Lab: 1 figure became worse; 1 of 2 comparisons were not done.")
    for part in (
        "decode tokens/s",
        "40.0 → 30.0 (−25.0 %)",
        "since r4",
        "INT4 NF4",
        "driver 580 → 590",
    ):
        assert part in text
    assert "/home/me" not in text and "no folder '…/b'" in text


def test_a_long_list_is_cut() -> None:
    """A chat is no place for a hundred lines."""
    lines = message_text(report_of((WORSE,) * 40)).splitlines()
    assert len(lines) == 11 and lines[-1] == "… and 33 more"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("no folder '/home/me/my model'", "no folder '…/my model'"),
        ("cannot read /srv/models/x/config.json.", "cannot read …/config.json."),
        (r"C:\Users\me\model is gone", "…/model is gone"),
        ("~/models/x: no such file", "…/x: no such file"),
        ("meta-llama/Llama-3.1-8B at 40 tokens/s", "meta-llama/Llama-3.1-8B at 40 tokens/s"),
        ("see https://example.com/a/b", "see https://example.com/a/b"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, left: str) -> None:
    """Names of models and web addresses stay."""
    assert without_private(text) == left


def test_secrets_of_the_environment_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever text they got into."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijk")
    monkeypatch.setenv("DB_PASSWORD", "hunter2hunter2")
    text = without_private("401 for hf_abcdefghijk at postgresql://me:hunter2hunter2@db")
    assert "hf_abc" not in text and "hunter2" not in text


def test_an_address_is_asked_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line would be kept in records."""
    monkeypatch.delenv("LLMFIT_WEBHOOK_URL", raising=False)
    with pytest.raises(UsageError, match="LLMFIT_WEBHOOK_URL"):
        webhook_url()
    monkeypatch.setenv("LLMFIT_WEBHOOK_URL", "file:///etc/passwd")
    with pytest.raises(UsageError):
        webhook_url()


def test_a_hook_that_refuses_is_an_error_without_its_address(hook: str) -> None:
    """As is one that is not there."""
    _Hook.status = 500
    for address in (hook, "http://127.0.0.1:1/SECRETPART"):
        with pytest.raises(StoreError, match="did not take") as refused:
            post_message("x", address)
        assert "SECRETPART" not in str(refused.value)


def test_a_hook_that_hangs_up_is_an_error_like_others(hook: str) -> None:
    """The report has other readers, and its own exit code."""
    _Hook.status = 0
    with pytest.raises(StoreError, match="the webhook did not take the message"):
        post_message("text", hook)
