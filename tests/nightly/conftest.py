"""A night that takes a second: a backend that sleeps, on the embedded model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sleeping_backend import install

from llmfit.nightly.config import NightlyConfig, read_config

NIGHT = """
title = "A night"
machine = "lab"
store = "store.db"

[defaults]
backends = ["slowpoke", "slowpoke2"]
tasks = []

[workloads.short]
prompt_tokens = 8
new_tokens = 8
repeats = 5
warmup = 0

[[models]]
model = "embedded"
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a version of the sleeping backend, for this process and its workers."""
    folder = tmp_path / "plugin"
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))

    def put(version: str) -> None:
        install(folder, version=version)

    put("1.0")
    return put


@pytest.fixture
def night(tmp_path: Path, plugin: object) -> Callable[..., NightlyConfig]:
    """Settings from the text above, some of it replaced."""

    def read(**replaced: str) -> NightlyConfig:
        text = NIGHT
        for old, new in replaced.items():
            assert f"{old} = " in text or f"[{old}" in text, old
            text = "\n".join(
                new if line.startswith((f"{old} =", f"[[{old}")) else line
                for line in text.splitlines()
            )
        path = tmp_path / "night.toml"
        path.write_text(text)
        return read_config(path)

    return read
