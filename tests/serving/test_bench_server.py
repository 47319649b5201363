"""A server measured from outside: known times come out, and every fault is counted or told."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from speaking_server import Behaviour, answer, begin, event, piece, speaking

from llmfit.errors import LlmfitError, UsageError
from llmfit.network import offline
from llmfit.records import from_json, to_json
from llmfit.report.server import render_server
from llmfit.serving.load import ServerTarget, bench_server
from llmfit.serving_records import ServerBenchmark, ServerWorkload

QUICK = ServerWorkload(concurrency=(1, 2), prompt_tokens=33, new_tokens=4, requests=4)


def bench(
    behaviour: Behaviour, workload: ServerWorkload = QUICK, **target: str | None
) -> ServerBenchmark:
    with speaking(behaviour) as url:
        return bench_server(ServerTarget(url=url, **target), workload)  # type: ignore[arg-type]


@pytest.mark.slow
def test_known_times_come_out() -> None:
    """A first piece after 80 ms and one each 20 ms, for two of three clients at a time."""
    behaviour = Behaviour(first_s=0.08, gap_s=0.02, pieces=4, at_once=2)
    workload = ServerWorkload(concurrency=(1, 3), prompt_tokens=33, new_tokens=4, requests=9)
    found = bench(behaviour, workload)
    alone, three = found.levels
    assert alone.ttft is not None and 0.08 <= alone.ttft.p50_s < 0.16
    assert alone.itl is not None and 0.015 < alone.itl.p50_s < 0.04
    assert alone.tpot is not None and 0.015 < alone.tpot.p50_s < 0.04
    assert alone.latency is not None and 0.14 <= alone.latency.p50_s < 0.28
    assert alone.new_tokens == 36 and alone.errors == {}
    assert three.ttft is not None and three.ttft.p95_s > alone.ttft.p50_s + 0.06  # it waits
    assert alone.tokens_per_s is not None and three.tokens_per_s is not None
    assert 1.3 < three.tokens_per_s / alone.tokens_per_s < 2.5


def test_prompts_have_the_length_that_is_asked_for_and_are_all_different() -> None:
    """By a server that counts two tokens a word and one more."""
    behaviour = Behaviour()
    found = bench(behaviour)
    assert all(level.prompt_tokens == 33 for level in found.levels)
    prompts = [body["prompt"] for body in behaviour.asked][3:]  # three ask what it takes
    assert {len(prompt.split()) for prompt in prompts[2:]} == {16}
    assert len(set(prompts)) == len(prompts)
    again = Behaviour()
    bench(again)
    assert sorted(body["prompt"] for body in again.asked[3:]) == sorted(prompts)
    other = Behaviour()
    bench(other, ServerWorkload(concurrency=(1,), prompt_tokens=33, requests=4, seed=1))
    assert not {body["prompt"] for body in other.asked[3:]} & set(prompts)


def test_what_a_server_refuses_is_left_out_and_told() -> None:
    """Fields beyond the core are dropped one by one; then tokens are counted by pieces."""
    behaviour = Behaviour(refuses=("ignore_eos", "stream_options"), usage=False)
    found = bench(behaviour)
    assert found.notes[:2] == (
        "the server takes no ignore_eos",
        "the server takes no stream_options",
    )
    assert "estimated" in found.notes[2]
    assert [level.new_tokens for level in found.levels] == [16, 16]


def test_what_it_takes_is_asked_field_by_field() -> None:
    """Refusing the one does not cost the other, nor is it said to."""
    behaviour = Behaviour(refuses=("stream_options",))
    found = bench(behaviour)
    assert [note for note in found.notes if "takes no" in note] == [
        "the server takes no stream_options"
    ]
    assert all(body["ignore_eos"] for body in behaviour.asked[4:])


def test_an_answer_that_was_stopped_for_its_length_has_all_tokens() -> None:
    """Two pieces, and the server does not count: it stopped where it was told to."""
    found = bench(Behaviour(usage=False, pieces=2, finish="length"))
    assert [level.new_tokens for level in found.levels] == [16, 16]


def test_short_answers_are_told() -> None:
    """A model that ends its answers early."""
    found = bench(Behaviour(pieces=2))
    assert any("answers had 2 tokens on average, not 4" in note for note in found.notes)


def test_a_server_that_only_chats() -> None:
    """Is asked by messages; asking for completions is then an error."""
    missing = ("/v1/completions",)
    found = bench(Behaviour(missing=missing))
    assert found.api == "chat" and found.levels[0].new_tokens == 16
    with pytest.raises(LlmfitError, match="answers 404 for the-model"):
        bench(Behaviour(missing=missing), api="completions")


def _cut_off(handler: BaseHTTPRequestHandler) -> None:
    begin(handler)
    event(handler, {"choices": [piece("", "a")]})


def _told_error(handler: BaseHTTPRequestHandler) -> None:
    begin(handler)
    event(handler, {"error": {"message": "out of blocks"}})


def _no_json(handler: BaseHTTPRequestHandler) -> None:
    begin(handler)
    handler.wfile.write(b"data: {no json\n\n")


def _no_stream(handler: BaseHTTPRequestHandler) -> None:
    answer(handler, 200, {"choices": []})


def _no_text(handler: BaseHTTPRequestHandler) -> None:
    begin(handler)
    handler.wfile.write(b"data: [DONE]\n\n")


def _silent(handler: BaseHTTPRequestHandler) -> None:
    begin(handler)
    time.sleep(1.5)


def _overloaded(handler: BaseHTTPRequestHandler) -> None:
    answer(handler, 503, {"error": "busy, says \x1b[31m" + "x" * 1000})


FAULTS: list[tuple[Callable[[BaseHTTPRequestHandler], None], str]] = [
    (_cut_off, "the answer ended in the middle"),
    (_told_error, "an error in the answer: .*out of blocks"),
    (_no_json, "an event that is no JSON"),
    (_no_stream, "no stream of events"),
    (_no_text, "an answer without text"),
    (_silent, "no end within 0.5 s|the server was silent too long"),
    (_overloaded, "status 503: .*…$"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_every_second_answer_goes_wrong(
    fault: Callable[[BaseHTTPRequestHandler], None], reason: str
) -> None:
    """Those are counted with their reason, and figures are of the others."""
    turn = 0

    def at_times(handler: BaseHTTPRequestHandler) -> None:
        nonlocal turn
        turn += 1
        if turn % 2:
            return fault(handler)
        begin(handler)
        event(handler, {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]})
        return None

    workload = ServerWorkload(
        concurrency=(1,), prompt_tokens=9, new_tokens=4, requests=4, timeout_s=0.5
    )
    found = bench(Behaviour(instead=at_times), workload)
    (level,) = found.levels
    assert sum(level.errors.values()) == 2 and level.new_tokens == 8
    (said,) = level.errors
    assert len(said) < 400
    assert re.search(reason, said), said
    text = render_server(found, "table", width=80)
    assert "2 of 4" in text and "\x1b" not in text


def test_no_answer_at_all_is_an_error_that_says_why() -> None:
    """Whatever the reason; nothing is recorded."""
    with pytest.raises(LlmfitError, match="answered no request: the answer ended in the middle"):
        bench(Behaviour(instead=_cut_off))


def test_nobody_there() -> None:
    """One error, with the next command."""
    with pytest.raises(LlmfitError, match=r"no answer from http://127\.0\.0\.1:9: .+ Try: "):
        bench_server(ServerTarget(url="http://127.0.0.1:9/v1/"), QUICK)


def test_no_proxy_stands_between_this_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers would pass for the server's."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert all(level.tokens_per_s for level in bench(Behaviour()).levels)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000", "ftp://host", "http://", "", "http:/x", "http://127.0.0.1:99999",
        "http://127.0.0.1:x", "http://127.0.0.1:0",
    ],
)  # fmt: skip
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        bench_server(ServerTarget(url=url), QUICK)


def test_offline_is_this_machine() -> None:
    """A server elsewhere is not asked."""
    with offline(), pytest.raises(UsageError, match="uses no network"):
        bench_server(ServerTarget(url="http://gpu-box:8000"), QUICK)
    with offline():
        assert bench(Behaviour()).local


def test_a_key_is_sent_and_in_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it in the error of a server that says it back."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    found = bench(Behaviour(key="sk-planted-0123456789"), key="sk-planted-0123456789")
    assert "planted" not in to_json(found)
    with pytest.raises(UsageError, match="refuses without a key") as told:
        bench(Behaviour(key="another"), key="sk-planted-0123456789")
    assert "planted" not in str(told.value)


def test_which_of_several_models() -> None:
    """The only one, the one that is named, or the choice as an error."""
    two = ("a", "b")
    with pytest.raises(UsageError, match="it lists a, b"):
        bench(Behaviour(models=two))
    assert bench(Behaviour(models=two), served_model="b").served_model == "b"


@pytest.mark.parametrize(
    ("workload", "named"),
    [
        (ServerWorkload(concurrency=(4, 1)), "4, 1"),
        (ServerWorkload(concurrency=(0,)), "0"),
        (ServerWorkload(concurrency=(100_000,)), "100000"),
        (ServerWorkload(concurrency=(1, 8), requests=4), "4 requests"),
    ],
)
def test_a_load_that_is_none(workload: ServerWorkload, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        bench_server(ServerTarget(url="http://127.0.0.1:9"), workload)


def test_the_record_reads_back() -> None:
    found = bench(Behaviour(), model="org/m", backend="awq")
    assert from_json(ServerBenchmark, to_json(found)) == found
    assert "org/m (awq), served as the-model" in render_server(found, "md")


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """While answers come slowly: exit 130, one line, nothing kept."""
    behaviour = Behaviour(first_s=0.2, gap_s=1.0, pieces=60)
    with speaking(behaviour) as url:
        words = ["bench-server", url, "--new-tokens", "60", "--store", str(tmp_path / "s.db")]
        process = subprocess.Popen(
            [sys.executable, "-m", "llmfit", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while len(behaviour.asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "llmfit: interrupted.\n")
    assert not (tmp_path / "s.db").exists()
