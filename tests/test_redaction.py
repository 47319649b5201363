"""Secrets are found where they lie, and hidden wherever they come up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.records import Verdict
from llmfit.redaction import Secrets, secrets_of, without_password, without_passwords
from llmfit.testing import make_comparison, make_record

NOTHING = {"HOME": "/nonexistent"}


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD",
        "GITHUB_TOKEN", "OPENAI_API_KEY", "SSH_PRIVATE_KEY", "my_webhook", "DB_PASS", "BASIC_AUTH",
    ],
)  # fmt: skip
def test_a_variable_that_sounds_like_a_secret_is_one(name: str) -> None:
    """Its value is hidden in any text, as are the forms in which others write it."""
    value = 'p4ss/w"ör\\d+1'
    known = secrets_of({**NOTHING, name: value}, [])
    for text in (
        value,
        json.dumps(value),
        repr(value),
        "%2Fw%22%C3%B6r%5Cd%2B1".join(("p4ss", "")),
    ):
        assert "w" not in known.hide(f"401: {text}, no"), text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_TOKEN_PATH", __file__),
        ("GIT_AUTHOR_NAME", "Jane Developer"),
        ("SECRET_LEVEL", "1"),
        ("PATH", "/usr/bin:/usr/local/bin"),
    ],
)
def test_what_is_no_secret_stays(name: str, value: str) -> None:
    """Short words, places of files and other variables garble no text."""
    assert secrets_of({**NOTHING, name: value}, []).hide(f"a {value} b") == f"a {value} b"


def test_the_longest_value_goes_first() -> None:
    """One that another begins with leaves no end of it."""
    known = secrets_of({**NOTHING, "A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefghSECRET"}, [])
    assert known.hide("abcdefghSECRET abcdefgh") == "*** ***"


def test_every_line_of_a_key_is_hidden() -> None:
    """Logs are shown line by line."""
    key = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA\n-----END KEY-----"
    assert "MIIE" not in secrets_of({**NOTHING, "SIGNING_KEY": key}, []).hide("> MIIEowIBAAKCAQEA")


@pytest.mark.parametrize(
    ("address", "leaks"),
    [
        ("postgresql://me:hunter2hunter2@db/x", "hunter2"),
        ("postgresql://me:pw@db/x", ":pw@"),
        ("postgresql://me:a%40b%2Fcdefg@db/x", "a@b/cdefg"),
        ("postgresql://me:p@ss/w rd@db/x", "ss/w"),
        ("postgresql://:onlypassword@db/x", "onlypassword"),
        ("postgresql://me@db/x?password=inquery99", "inquery99"),
        ("https://hub.example/x?sig=abcdef0123456789&a=1", "abcdef0123456789"),
    ],
)
def test_an_address_gives_its_password_away_nowhere(address: str, leaks: str) -> None:
    """Given by a variable or on the command line: neither in a text nor in the kept command."""
    for known in (
        secrets_of({**NOTHING, "LLMFIT_STORE": address}, []),
        secrets_of(NOTHING, ["llmfit", "history", "--store", address]),
        secrets_of(NOTHING, ["llmfit", "history", f"--store={address}"]),
    ):
        assert leaks not in known.hide(f"cannot reach {address}.")
        assert leaks not in known.hide(f"… {leaks} …") or len(leaks) < 8
    for word in (address, f"--store={address}"):
        assert leaks not in without_password(word) and "x" in without_password(word)


def test_a_command_without_its_password_runs_again() -> None:
    """The user stays; other words stay as they are."""
    assert without_password("postgresql://me:pw@db:5432/x") == "postgresql://me@db:5432/x"
    for word in ("org/model", "--limit", "https://host:8080/path", "a?b=c", "x@y", "hf://a/b@main"):
        assert without_password(word) == word == without_passwords(word)


def test_a_webhook_is_hidden_with_the_place_on_its_host() -> None:
    """Errors name one or the other."""
    url = "https://hooks.example.com/services/T00/B00/XXSECRETXX?key=QQSECRETQQ"
    by_name = secrets_of({**NOTHING, "LLMFIT_WEBHOOK_URL": url}, [])
    by_word = secrets_of(NOTHING, ["llmfit", "report", "--webhook", url])
    for known in (by_name, by_word):
        text = known.hide(f"{url} · POST /services/T00/B00/XXSECRETXX · ?key=QQSECRETQQ")
        assert "SECRET" not in text


def test_tokens_of_the_hub_client_are_found(tmp_path: Path) -> None:
    """Where it says that it keeps them, wherever variables move that; and in .netrc."""
    places = ({}, {"HF_HOME": "hf"}, {"XDG_CACHE_HOME": "c"}, {"HF_TOKEN_PATH": "t"})
    for named in places:
        moved = {name: str(tmp_path / place) for name, place in named.items()}
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **moved}
        code = (
            "from huggingface_hub import constants as c; print(c.HF_TOKEN_PATH);"
            "print(c.HF_STORED_TOKENS_PATH)"
        )
        token, stored = subprocess.check_output(
            [sys.executable, "-c", code], env=environment, text=True
        ).split()
        for place, text in (
            (token, "hf_oneoneoneone\n"),
            (stored, "[a]\nhf_token = hf_twotwotwo\n"),
        ):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            Path(place).write_text(text)
        assert secrets_of(environment, []).hide("hf_oneoneoneone hf_twotwotwo") == "*** ***", moved
        Path(token).unlink()
        Path(stored).unlink()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password wandbkey0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert secrets_of({"HOME": str(tmp_path)}, []).hide("wandbkey0123") == "***"


def test_a_record_is_hidden_all_through() -> None:
    """Every text of it; what names a row or is one of a few words stays, and figures do."""
    secret = "sk-012345"
    row = make_record(
        "nf4", status="failed", reason=f"401 {secret}", notes=("a", f"b {secret}"), dtype=secret
    )
    made = make_comparison([make_record("bf16"), row], command=f"llmfit {secret}")
    made = replace(made, verdict=Verdict(backend="nf4", reasons=(f"{secret}",)))
    hidden = Secrets((secret, "unavailable", "nf4", "failed")).hide_in(made)
    assert secret not in repr(hidden)
    assert hidden.rows[1].reason == "401 ***" and hidden.rows[1].notes == ("a", "b ***")
    assert hidden.rows[1].backend == hidden.verdict.backend == "nf4"
    assert hidden.rows[1].status == "failed"
    assert hidden.rows[0] is made.rows[0]
    assert Secrets(("other-secret",)).hide_in(made) is made


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_stream_hides_what_is_cut_by_its_pieces(size: int) -> None:
    """Whatever the pieces, no value comes through and nothing else is lost."""
    values = ("abcabcabd", "token-0123456789")
    text = b"x abcabcabcabd y token-0123456789 token-012 " * 5 + b"abcabcab"
    stream = Secrets(values).stream()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    out = b"".join([*map(stream.feed, pieces), stream.flush()])
    assert out == b"x abc*** y *** token-012 " * 5 + b"abcabcab"


def test_a_traceback_holds_no_secret() -> None:
    """A fault of ours is told in full, but for what a library put into its message."""
    code = (
        "import os, llmfit.cli.main as m\n"
        "def fail(argv): raise RuntimeError('no: ' + os.environ['HF_TOKEN'])\n"
        "m._run = fail\n"
        "m.main(['x'])\n"
    )
    environment = {**os.environ, "HF_TOKEN": "hf_plantedtoken"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "RuntimeError: no: ***" in done.stderr and "Traceback" in done.stderr
    assert "planted" not in done.stderr
