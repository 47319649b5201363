"""The declared dependencies: bounded on both sides, audited, and listed in a release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from llmfit.deployer import Deployer
from llmfit.records import EvaluationSettings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> Iterator[Requirement]:
    """Every dependency and every extra's, the extras made of others left out."""
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        if requirement.name != "llmfit":
            yield requirement


@pytest.mark.parametrize("requirement", list(requirements()), ids=lambda each: each.name)
def test_a_dependency_is_bounded_on_both_sides(requirement: Requirement) -> None:
    """One lower and one upper bound, and the installed version lies between them."""
    operators = sorted(each.operator for each in requirement.specifier)
    assert operators == ["<", ">="]


def test_the_lowest_versions_are_those_declared() -> None:
    """scripts/lowest prints one constraint a dependency, each inside its own bounds."""
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "lowest"], capture_output=True, text=True, check=True
    ).stdout.split()
    lowest = {name: Version(version) for name, version in (line.split("==") for line in printed)}
    declared = {each.name.lower(): each.specifier for each in requirements()}
    assert lowest.keys() == declared.keys()
    for name, specifier in declared.items():
        (least,) = [each.version for each in specifier if each.operator == ">="]
        assert lowest[name] == Version(least) and specifier.contains(lowest[name])


def test_the_release_job_is_a_workflow() -> None:
    """By the schema that GitHub's own editor uses."""
    pytest.importorskip("check_jsonschema")
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows",
         ROOT / ".github" / "workflows" / "release.yml"],
        check=True,
    )  # fmt: skip


EXCEPTIONS = dict(
    line.split()[:2]
    for line in (ROOT / "scripts" / "audit-exceptions").read_text().splitlines()
    if not line.startswith("#")
)


@pytest.mark.slow
def test_what_the_audit_passes_over_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither package's cache is opened where the library that brings it loads and scores."""
    diskcache, sqlitedict = pytest.importorskip("diskcache"), pytest.importorskip("sqlitedict")
    assert sorted(EXCEPTIONS.values()) == ["diskcache", "sqlitedict"]

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a cache of pickles was opened")

    monkeypatch.setattr(diskcache.Cache, "__init__", opened)
    monkeypatch.setattr(sqlitedict.SqliteDict, "__init__", opened)
    with Deployer(backend="gguf", cache_dir=str(tmp_path)).load() as deployed:
        assert deployed.generate("The sun", max_new_tokens=2).new_tokens
        scored = deployed.evaluate(EvaluationSettings(limit=2))
    assert scored.perplexity is not None and scored.hellaswag is not None


# ---------------------------------------------------------------- with the package index


@contextmanager
def osv(
    vulnerable: str | None, name: str = "PLANTED-1"
) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A server that answers like api.osv.dev; its address and the questions it was asked."""
    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            answer: dict[str, object] = {}
            if question["package"]["name"] == vulnerable:
                affected = {"package": question["package"], "ranges": []}
                answer["vulns"] = [{"id": name, "details": "planted", "affected": [affected]}]
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
    finally:
        server.shutdown()
        server.server_close()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    """scripts/check --audit against a vulnerability server."""
    return subprocess.run(
        [ROOT / "scripts" / "check", "--audit", "--osv-url", url, "--timeout", "10"],
        env={**os.environ, "LLMFIT_VENV": sys.prefix},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.network
@pytest.mark.slow
def test_the_audit_names_what_is_vulnerable() -> None:
    """pip-audit asks for every installed package's public version, and fails on a known fault."""
    with osv(vulnerable="numpy") as (url, asked):
        done = audit(url)
    assert done.returncode == 1
    assert "PLANTED-1" in done.stdout and "numpy" in done.stdout
    names = {str(each["package"]["name"]).lower() for each in asked}  # type: ignore[index]
    assert {"torch", "transformers", "llama-cpp-python"} <= names
    assert not any("+" in str(each["version"]) for each in asked)
    with osv(vulnerable=None) as (url, _):
        assert audit(url).returncode == 0
    for name, package in EXCEPTIONS.items():
        with osv(vulnerable=package, name=name) as (url, _):
            assert audit(url).returncode == 0


@pytest.mark.network
@pytest.mark.slow
def test_an_audit_that_asks_nobody_is_no_clean_one() -> None:
    """Where the vulnerability server is not reached, the check fails."""
    done = audit("http://127.0.0.1:9/v1/query")
    assert done.returncode != 0
