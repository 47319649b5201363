"""``llmfit compare`` and ``llmfit generate`` for real, on the embedded model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmfit.records import Comparison, from_json

Run = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("--no-eval", "--prompt-tokens", "16", "--new-tokens", "4", "--repeats", "1")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, ...]:
    """Options that keep artifacts and records out of the user's folders."""
    return ("--cache-dir", str(tmp_path / "cache"), "--runs-dir", str(tmp_path / "runs"))


@pytest.mark.slow
def test_stdout_carries_the_result_and_stderr_the_progress(
    llmfit: Run, folders: tuple[str, ...], tmp_path: Path
) -> None:
    """--out takes the JSON, stdout the table, stderr plain lines; the record names its command."""
    out = tmp_path / "result.json"
    words = ("compare", "--backends", "sdpa", *QUICK, *folders)
    done = llmfit(*words, "--format", "json", "--out", str(out), COLUMNS="80", timeout_s=300)
    assert done.returncode == 0, done.stderr
    comparison = from_json(Comparison, out.read_bytes())
    row = comparison.rows[0]
    assert row.status == "ok" and row.decode is not None and row.decode.tokens_per_s.median > 0
    assert comparison.command is not None and comparison.command.startswith("llmfit compare --back")
    assert "★ pick" in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr.startswith("[1/1] BF16 + SDPA …\n      ok · ")
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    mode = 0o666 & ~_umask()
    assert out.stat().st_mode & 0o777 == mode


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
def test_no_row_that_ran_is_exit_1(llmfit: Run, folders: tuple[str, ...]) -> None:
    """When every row fails the comparison still prints, with reasons, and the exit code is 1."""
    words = ("compare", "--backends", "bf16", "--time-limit", "0.01", *QUICK, *folders)
    done = llmfit(*words, "--format", "json", "--quiet", timeout_s=120)
    assert done.returncode == 1 and done.stderr == ""
    comparison = from_json(Comparison, done.stdout)
    assert comparison.rows[0].status == "failed" and comparison.rows[0].reason
    assert comparison.verdict.backend is None


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.slow
def test_an_interrupt_keeps_what_was_finished(folders: tuple[str, ...], tmp_path: Path) -> None:
    """Ctrl-C prints the table as far as it is, says so, and exits 130."""
    with subprocess.Popen(
        [sys.executable, "-m", "llmfit", "compare", "--backends", "bf16,nf4", *QUICK, *folders],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert first.startswith("[1/2] ")
    assert process.returncode == 130
    assert "0 of 2 rows were finished" in err and "Traceback" not in err
    assert out.count("interrupted") >= 2
    records = list((tmp_path / "runs").glob("*/comparison.json"))
    assert len(records) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda at: None, ["./not-there"]),
        (lambda at: (at / "m").mkdir(), ["./m"]),
        (lambda at: (at / "m.gguf").write_bytes(b"GGUF"), ["./m.gguf"]),
    ],
    ids=["no folder", "no config.json", "a file"],
)
@pytest.mark.parametrize("verb", ["compare", "generate"])
def test_a_wrong_model_is_one_message(
    llmfit: Run, tmp_path: Path, verb: str, make: Callable[[Path], object], words: list[str]
) -> None:
    """A model that is not there: exit 1, its name, the next thing to try, no traceback."""
    make(tmp_path)
    more = ["--prompt", "a"] if verb == "generate" else []
    done = llmfit(verb, *words, *more, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("llmfit: error: ") and words[0].removeprefix("./") in first
    assert second.startswith("Try: ")


@pytest.mark.slow
def test_generate_prints_text_and_speed(llmfit: Run) -> None:
    """The continuation alone goes to stdout, the speed to stderr, and nothing else."""
    done = llmfit("generate", "--max-new-tokens", "8", stdin=b"The sun\n", timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "The sun" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert "tokens/s (decode)" in line and "to the first" in line


@pytest.mark.slow
def test_generate_opens_no_file_of_a_model_in_its_own_process(tmp_path: Path) -> None:
    """llama.cpp reads a GGUF in a child: this process has imported neither it nor PyTorch."""
    script = (
        "import sys\n"
        "from llmfit.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'llama_cpp', 'torch'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    words = ["generate", "--backend", "gguf", "--device", "cpu", "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--prompt", "The sun", "--cache-dir", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_generate_json_and_seed(llmfit: Run) -> None:
    """The same seed gives the same tokens; JSON holds them with the timing."""
    words = ("generate", "--prompt", "The sun", "--max-new-tokens", "6", "--temperature", "1")
    answers = [
        json.loads(llmfit(*words, "--seed", "7", "--format", "json", timeout_s=120).stdout)
        for _ in range(2)
    ]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert next(iter(answers[0])) == "schema_version"
    assert answers[0]["new_tokens"] == len(answers[0]["token_ids"]) <= 6
