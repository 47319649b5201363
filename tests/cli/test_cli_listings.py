"""``llmfit backends`` and ``llmfit cache``: what they show is what is there."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.cells import cell_len

from llmfit.backends.base import Backend
from llmfit.backends.registry import backend_ids
from llmfit.cli.main import main
from llmfit.quantize.cache import ArtifactCache


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache with two artifacts, of 1,000 and 2,500 bytes."""
    model = tmp_path / "tiny-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    root = tmp_path / "cache"
    cache = ArtifactCache(root)
    for kind, size in (("gptq", 1000), ("awq", 2500)):
        cache.get_or_make(kind, model, {"bits": 4}, lambda at, n=size: _fill(at / "weights.bin", n))
    return root


def _fill(file: Path, size: int) -> None:
    file.write_bytes(b"x" * size)


def keys(cache_dir: Path) -> list[str]:
    """Keys in the cache, read by the library."""
    return [entry.key for entry in ArtifactCache(cache_dir).entries()]


def test_backends_json_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    """All rows in the registry's order, with the versions that the installer knows."""
    assert main(["backends", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert next(iter(data)) == "schema_version"
    assert tuple(part["id"] for part in data["backends"]) == backend_ids()
    bf16 = data["backends"][0]
    assert bf16["works"] and bf16["install"] is None
    assert bf16["packages"]["torch"] == version("torch")


def test_a_missing_package_gets_its_install_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose package is absent says no, which one, and the exact pip line."""
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "llmfit.backends.base.find_spec",
        lambda name: None if name == "bitsandbytes" else real(name),
    )
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["backends"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("nf4"))
    assert " no " in line
    assert "pip install 'llmfit[bnb]'" in out and "bitsandbytes missing" in " ".join(out.split())
    assert max(map(cell_len, out.splitlines())) <= 80


def test_cache_list_verify_reads_everything_over(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other content of the same size is seen with --verify, and only then."""
    (file,) = cache_dir.glob("awq-*/weights.bin")
    file.write_bytes(b"y" * 2500)
    damaged = {}
    for words in ([], ["--verify"]):
        listed = ["cache", "list", "--cache-dir", str(cache_dir), "--format", "json", *words]
        assert main(listed) == 0
        entries = json.loads(capsys.readouterr().out)["entries"]
        damaged[bool(words)] = {each["kind"] for each in entries if each["damaged"]}
    assert damaged == {False: set(), True: {"awq"}}


def test_cache_list_shows_sizes_and_the_total(
    cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each artifact with its key, model and size, and the sum of all."""
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["cache", "list", "--cache-dir", str(cache_dir)]) == 0
    out = capsys.readouterr().out
    assert all(key in out for key in keys(cache_dir))
    assert "tiny-model" in out and "1.00 kB" in out and "2.50 kB" in out
    assert "2 artifacts, 3.50 kB" in out


def test_cache_list_json(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON has the same entries and the total in bytes."""
    assert main(["cache", "list", "--cache-dir", str(cache_dir), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["total_bytes"] == 3500
    assert {entry["key"] for entry in data["entries"]} == set(keys(cache_dir))
    assert data["entries"][0]["settings"] == {"bits": 4}


def test_an_empty_cache_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there yet holds nothing, and listing does not make it."""
    assert main(["cache", "list", "--cache-dir", str(tmp_path / "none")]) == 0
    assert "0 artifacts, 0 B" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_cache_clear_removes_only_the_key(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One key frees one artifact, and says how much that was."""
    gone, kept = sorted(keys(cache_dir))
    assert main(["cache", "clear", gone, "--cache-dir", str(cache_dir)]) == 0
    assert keys(cache_dir) == [kept]
    assert "removed 1 artifact, 2.50 kB freed" in capsys.readouterr().out


def test_cache_clear_all(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--all frees everything."""
    assert main(["cache", "clear", "--all", "--cache-dir", str(cache_dir)]) == 0
    assert keys(cache_dir) == []
    assert "removed 2 artifacts, 3.50 kB freed" in capsys.readouterr().out


def test_cache_clear_of_an_unknown_key_removes_nothing(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown key is a usage error, also beside a known one."""
    known = keys(cache_dir)
    assert main(["cache", "clear", known[0], "nonsense", "--cache-dir", str(cache_dir)]) == 2
    assert "'nonsense'" in capsys.readouterr().err
    assert keys(cache_dir) == known


def test_install_lines_are_commands() -> None:
    """Each backend's hint is one line that begins with pip install."""
    from llmfit.backends.registry import get_backend

    backends: list[Backend] = [get_backend(name) for name in backend_ids()]
    assert all(b.install_hint().startswith("pip install ") for b in backends)
