"""The real command line: wrong arguments, help, and what stays unimported."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmfit.cli.main import main

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

WRONG = [
    (["compar"], "compar"),
    (["compare", "--batch", "0"], "'0'"),
    (["compare", "--batch", "two"], "'two'"),
    (["compare", "--batch", "1.5"], "'1.5'"),
    (["compare", "--batch", "9999999999"], "'9999999999'"),
    (["compare", "--prompt-tokens", "-3"], "'-3'"),
    (["compare", "--new-tokens", "1"], "'1'"),
    (["compare", "--repeats", "0"], "'0'"),
    (["compare", "--warmup", "-1"], "'-1'"),
    (["compare", "--gpu-gb", "0"], "'0'"),
    (["compare", "--gpu-gb", "nan"], "'nan'"),
    (["compare", "--gpu-gb", "inf"], "'inf'"),
    (["compare", "--gpu-gb", "8GB"], "'8GB'"),
    (["compare", "--ram-gb", "-1"], "'-1'"),
    (["compare", "--prefill-chunk", "half"], "'half'"),
    (["compare", "--weights", "random"], "'random'"),
    (["compare", "--weights", "synthetic", "--tasks", "piqa"], "--tasks"),
    (["compare", "--objective", "best"], "'best'"),
    (["compare", "--min-tokens-per-s", "0"], "'0'"),
    (["compare", "--max-accuracy-loss", "101"], "'101'"),
    (["compare", "--max-perplexity-rise", "-1"], "'-1'"),
    (["compare", "--margin", "100"], "'100'"),
    (["compare", "--pick-on", "tpu"], "'tpu'"),
    (["compare", "--reference", "rtx"], "'rtx'"),
    (["study"], "NAME"),
    (["study", "attenton"], "'attenton'"),
    (["study", "attention", "--preset", "big"], "'big'"),
    (["study", "attention", "--temperature", "3"], "--temperature"),
    (["study", "techniques", "--temperature", "0"], "'0'"),
    (["study", "techniques", "--mixing", "1.5"], "'1.5'"),
    (["study", "attention", "--device", "tpu"], "'tpu'"),
    (["study", "attention", "--threads", "0"], "'0'"),
    (["study", "attention", "--seed", "-1"], "'-1'"),
    (["study", "attention", "--time-limit", "0"], "'0'"),
    (["study", "attention", "--format", "csv"], "'csv'"),
    (["study", "attention", "--out", ""], "''"),
    (["plan", "--gpu-gb", "-8"], "'-8'"),
    (["plan", "--ram-gb", "0"], "'0'"),
    (["plan", "--gpu", "RTX 4061"], "RTX 4060"),
    (["plan", "llama-3.1-8b", "--context", "131073"], "131072"),
    (["plan", "--context", "2"], "'2'"),
    (["plan", "--context", "64", "--prompt-tokens", "8"], "--prompt-tokens"),
    (["plan", "--prefill-chunk", "0"], "'0'"),
    (["plan", "--batch", "0"], "'0'"),
    (["plan", "--prompt-tokens", "x"], "'x'"),
    (["plan", "--new-tokens", "1"], "'1'"),
    (["plan", "--backends", "int4"], "'int4'"),
    (["plan", "--kv-cache-dtype", "q3"], "'q3'"),
    (["plan", "--device", "cpu", "--gpu-gb", "8"], "--gpu-gb"),
    (["plan", "--device", "cpu", "--gpu", "RTX 4060"], "--gpu"),
    (["plan", "--format", "csv"], "'csv'"),
    (["plan", "--out", "/not-there/x.json"], "not-there"),
    (["plan", "--runs-dir", "/not-there"], "'/not-there'"),
    (["compare", "--time-limit", "0"], "'0'"),
    (["compare", "--threads", "0"], "'0'"),
    (["compare", "--seed", "4294967296"], "'4294967296'"),
    (["compare", "--limit", "0"], "'0'"),
    (["compare", "--ppl-window", "1"], "'1'"),
    (["compare", "--device", "tpu"], "'tpu'"),
    (["compare", "--format", "xml"], "'xml'"),
    (["compare", "--form", "json"], "'--form'"),
    (["compare", "--promt-tokens", "5"], "'--promt-tokens'"),
    (["compare", "a", "b"], "'b'"),
    (["compare", "--backends", "bf16,fp3"], "'fp3'"),
    (["compare", "--backends", "bf16,bf16"], "'bf16'"),
    (["compare", "--backends", "bf16,,nf4"], "'bf16,,nf4'"),
    (["compare", "--backends", ""], "''"),
    (["compare", "--backends", "bf16:q3_k_m"], "'q3_k_m'"),
    (["compare", "--checkpoint", "awq"], "'awq'"),
    (["compare", "--checkpoint", "awq="], "'awq='"),
    (["compare", "--checkpoint", "bf16=x/y"], "bf16"),
    (["compare", "--checkpoint", "fp3=x/y"], "'fp3'"),
    (["compare", "--checkpoint", "awq=./not-there"], "'./not-there'"),
    (["compare", "--checkpoint", "gguf=not-there.gguf"], "'not-there.gguf'"),
    (["compare", "--checkpoint", "awq=a/b", "--checkpoint", "awq=a/c"], "'awq'"),
    (["compare", "--backends", "bf16", "--checkpoint", "awq=a/b"], "awq"),
    (["compare", "--hellaswag-file", "not-there.jsonl"], "'not-there.jsonl'"),
    (["compare", "--text-file", "not-there.txt"], "'not-there.txt'"),
    (["compare", "--tasks", ""], "''"),
    (["compare", "--tasks", "hellaswag,,piqa"], "'hellaswag,,piqa'"),
    (["compare", "--tasks", "piqa,piqa"], "'piqa'"),
    pytest.param(["compare", "--tasks", "helaswag"], "helaswag", marks=pytest.mark.slow),
    (["compare", "--tasks", "piqa", "--text-file", __file__], "--text-file"),
    (["compare", "--tasks", "piqa", "--ppl-window", "64"], "--ppl-window"),
    (["compare", "--tasks", "wikitext", "--hellaswag-file", __file__], "--hellaswag-file"),
    (["compare", "--include-path", "not-there"], "'not-there'"),
    (["compare", "--include-path", "."], "--include-path"),
    (["compare", "--ppl-protocol", "gptq"], "'gptq'"),
    (["compare", "--kv-cache-dtype", "q5_0"], "'q5_0'"),
    (["compare", "--kv-cache-dtype", "q4_0", "--backends", "bf16"], "q4_0"),
    (["compare", "--llama-cpp", "not-there"], "'not-there'"),
    (["compare", "--llama-cpp", __file__], "is a file"),
    (["compare", "--llama-cpp", "."], "convert_hf_to_gguf.py"),
    (["compare", "--calibration", "not-there.txt"], "'not-there.txt'"),
    (["compare", "--no-eval", "--limit", "5"], "--limit"),
    (["compare", "--no-eval", "--tasks", "piqa"], "--tasks"),
    (["compare", "--gpus", "0"], "'0'"),
    (["compare", "--gpus", "65"], "'65'"),
    pytest.param(["compare", "--gpus", "2", "--device", "cpu"], "2 GPUs", marks=pytest.mark.slow),
    (["compare", "--split", "pipeline"], "'pipeline'"),
    (["compare", "--split", "tensor"], "--split"),
    (["compare", "--executor", "slurm"], "'slurm'"),
    (["compare", "--ray-address", "auto"], "--ray-address"),
    (["compare", "--gpu-kind", "H100"], "--gpu-kind"),
    (["compare", "--executor", "ray", "--ray-address", "ray://head:10001"], "ray://head:10001"),
    (["compare", "--executor", "ray", "--ray-address", "auto", "--offline"], "auto"),
    (["compare", "--out", "."], "'.'"),
    (["compare", "--out", "not-there/x.json"], "'not-there'"),
    (["compare", "--out"], "--out"),
    (["generate"], "prompt"),
    (["generate", "--prompt", " "], "empty"),
    (["generate", "--prompt", "a", "--prompt-file", "b"], "b"),
    (["generate", "--prompt", "a", "--backend", "fp3"], "'fp3'"),
    (["generate", "--prompt", "a", "--temperature", "-1"], "'-1'"),
    (["generate", "--prompt", "a", "--top-p", "0"], "'0'"),
    (["generate", "--prompt", "a", "--top-p", "1.5"], "'1.5'"),
    (["generate", "--prompt", "a", "--top-k", "-1"], "'-1'"),
    (["generate", "--prompt", "a", "--max-new-tokens", "0"], "'0'"),
    (["serve"], "--backend"),
    (["serve", "--backend", "fp3"], "'fp3'"),
    (["serve", "--backend", "gguf", "--engine", "vlm"], "'vlm'"),
    (["serve", "--backend", "gguf", "--engine", "ollama"], "Ollama"),
    (["serve", "--backend", "awq", "--engine", "llama-server"], "awq"),
    (["serve", "--backend", "gguf", "--context", "99999"], "99999"),
    (["serve", "--backend", "gguf", "--port", "0"], "'0'"),
    (["serve", "--backend", "gguf", "--gpu", "RTX 9"], "RTX 9"),
    (["deploy", "--backend", "gguf", "--out", "x"], "--engine"),
    (["deploy", "--backend", "gguf", "--engine", "ollama"], "--out"),
    (["deploy", "--backend", "gguf", "--engine", "ollama", "--out", __file__], __file__),
    (["bench-server"], "URL"),
    (["bench-server", "localhost:8000"], "'localhost:8000'"),
    (["bench-server", "http://127.0.0.1:9", "--concurrency", "4,1"], "4, 1"),
    (["bench-server", "http://127.0.0.1:9", "--concurrency", "a"], "'a'"),
    (["bench-server", "http://127.0.0.1:9", "--requests", "2"], "2 requests"),
    (["bench-server", "http://127.0.0.1:9", "--timeout", "0"], "'0'"),
    (["bench-server", "http://127.0.0.1:9", "--api", "grpc"], "'grpc'"),
    (["bench-server", "http://127.0.0.1:9", "--backend", "fp3"], "'fp3'"),
    (["bench-server", "http://127.0.0.1:9", "--backend", "all"], "'all'"),
    (["serve", "--backend", "sdpa", "--engine", "transformers", "--context", "99"], "context"),
    (["serve", "--backend", "sdpa", "--engine", "transformers", "--name", "m"], "name"),
    (["serve", "--backend", "sdpa", "--engine", "transformers", "--threads", "2"], "threads"),
    (["bench-server", "http://gpu-box:9", "--offline"], "gpu-box"),
    (["backends", "--format", "md"], "'md'"),
    (["cache"], "ACTION"),
    (["cache", "lst"], "'lst'"),
    (["cache", "clear"], "--all"),
    (["cache", "clear", "a", "--all"], "--all"),
]


@pytest.mark.parametrize(("words", "named"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_argument_is_one_message_and_exit_2(
    words: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each wrong argument gives exit code 2 and one message naming it, before any work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    first, *hint = err.splitlines()
    assert first.startswith("llmfit: error: ") and named in first
    assert len(hint) <= 1 and all(line.startswith("Try: ") for line in hint)


def test_a_mistyped_command_gets_a_suggestion(llmfit: Run) -> None:
    """``compar`` is answered with ``compare``."""
    assert "Try: llmfit compare\n" in llmfit("compar").stderr


def test_every_wrong_backend_message_names_the_known_ones(llmfit: Run) -> None:
    """An unknown backend's message lists what there is."""
    text = llmfit("compare", "--backends", "fp3").stderr
    assert all(name in text for name in ("bf16", "sdpa", "nf4", "gguf"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_is_refused(llmfit: Run, tmp_path: Path) -> None:
    """--out into a read-only folder fails before the run, not after it."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = llmfit("compare", "--out", str(locked / "x.json"))
    assert done.returncode == 2 and "no permission" in done.stderr


def test_control_characters_in_arguments_are_not_sent_back(llmfit: Run) -> None:
    """A message shows an escape sequence of an argument as text."""
    done = llmfit("compare", "--backends", "\x1b[31mred")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr and "x1b[31mred" in done.stderr


def test_a_prompt_that_is_not_text_is_refused(llmfit: Run, tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are named with their place."""
    done = llmfit("generate", stdin=b"ab\xff")
    assert done.returncode == 2 and "byte 2 is 0xff" in done.stderr


def test_no_arguments_show_the_help(llmfit: Run) -> None:
    """``llmfit`` alone shows what there is, and is a usage error."""
    done = llmfit()
    assert done.returncode == 2 and "llmfit compare" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["compare"],
        ["plan"],
        ["path"],
        ["advise"],
        ["reproduce"],
        ["generate"],
        ["backends"],
        ["cache"],
        ["cache", "list"],
        ["cache", "clear"],
    ],
    ids=" ".join,
)
def test_help_fits_80_columns_and_has_an_example(llmfit: Run, words: list[str]) -> None:
    """Each help goes to stdout, fits 80 columns and shows an example."""
    done = llmfit(*words, "--help", COLUMNS="80")
    assert done.returncode == 0 and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "example" in done.stdout and "llmfit" in done.stdout


def test_version(llmfit: Run) -> None:
    """--version prints the package's version."""
    from llmfit import __version__

    done = llmfit("--version")
    assert (done.returncode, done.stdout) == (0, f"llmfit {__version__}\n")


HEAVY = ("torch", "transformers", "rich", "numpy", "msgspec", "lm_eval", "llama_cpp", "gptqmodel")


@pytest.mark.parametrize(
    ("words", "light"),
    [
        (["--help"], HEAVY),
        (["compare", "--help"], HEAVY),
        (["backends", "--help"], HEAVY),
        (["backends"], ("torch", "transformers", "llama_cpp", "gptqmodel", "bitsandbytes")),
        (["compare", "--batch", "0"], ("torch", "transformers", "rich")),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_what_stays_unimported(words: list[str], light: tuple[str, ...]) -> None:
    """Help, listings and usage errors import none of the heavy packages."""
    code = (
        "import sys; from llmfit.cli.main import main; main(sys.argv[2:]); "
        "print([m for m in sys.argv[1].split() if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(light), *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["--help"], ["backends", "--help"]], ids=" ".join)
def test_help_is_quick(llmfit: Run, words: list[str]) -> None:
    """Help takes less than 0.3 s (the best of five, since the machine may be busy)."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        llmfit(*words)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


def test_a_closed_pipe_is_no_traceback() -> None:
    """``llmfit --help | head -0`` ends quietly."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llmfit", "backends", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 1)
    assert errors == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_message() -> None:
    """A result that cannot be written to stdout is an error with its cause."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llmfit", "backends"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("llmfit: error: cannot write the result to stdout")
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_narrow_encoding_is_no_crash(llmfit: Run) -> None:
    """Where stdout knows only ASCII, the listing still prints."""
    done = llmfit("backends", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and "nf4" in done.stdout
