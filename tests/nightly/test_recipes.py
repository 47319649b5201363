"""The recipes are accepted by what they are for, and call options that there are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from llmfit.cli.main import _parser
from llmfit.nightly.config import read_config

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "scripts" / "recipes"


def commands(text: str) -> list[str]:
    """Every ``llmfit …`` in a recipe, up to what the shell does with its output."""
    found = re.findall(r"(?:^|&& |env |run: )(llmfit [^>\n]+)", text, re.MULTILINE)
    assert found
    return found


@pytest.mark.parametrize("name", ["crontab", "llmfit-nightly.service", "github-actions.yml"])
def test_a_recipe_s_command_is_one_of_llmfit(name: str, tmp_path: Path) -> None:
    """Its verb and every option are parsed as the command line does."""
    config = tmp_path / "nightly.toml"
    shutil.copy(ROOT / "benchmarks" / "nightly.toml", config)
    for command in commands((RECIPES / name).read_text()):
        words = shlex.split(command)[1:]
        words = [str(config) if word.endswith("nightly.toml") else word for word in words]
        words = [str(tmp_path / "r") if word.endswith("/report") else word for word in words]
        args = _parser().parse_args(words)
        assert args.verb == "report" and args.webhook and args.quiet


def test_the_cron_line_is_one() -> None:
    """Comments, settings, and five fields within their ranges; no % that would end the line."""
    lines = [line for line in (RECIPES / "crontab").read_text().splitlines() if line[0] != "#"]
    setting, job = lines
    assert re.fullmatch(r"[A-Z_]+=\S+", setting)
    fields = job.split(maxsplit=5)
    for field, most in zip(fields[:5], (59, 23, 31, 12, 7), strict=True):
        assert field == "*" or 0 <= int(field) <= most
    assert "%" not in job


def test_systemd_takes_the_units() -> None:
    """By its own check where it is installed, and as files of sections and keys anywhere."""
    units = [RECIPES / "llmfit-nightly.service", RECIPES / "llmfit-nightly.timer"]
    for unit in units:
        parser = ConfigParser(interpolation=None, strict=True, delimiters="=")
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(unit.read_text())
        assert parser.sections()[0] == "Unit" and parser["Install"]["WantedBy"]
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here; the files' form was checked")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "llmfit-nightly" in line]
    assert ours == []
    when = "*-*-* 02:30:00"
    assert f"OnCalendar={when}\n" in units[1].read_text()
    assert (
        subprocess.run(
            ["systemd-analyze", "calendar", when], capture_output=True, check=False
        ).returncode
        == 0
    )


def test_github_takes_the_workflow() -> None:
    """By the schema that GitHub's own editor uses."""
    pytest.importorskip("check_jsonschema")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema",
         "--builtin-schema", "vendor.github-workflows", str(RECIPES / "github-actions.yml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_example_s_settings_are_read() -> None:
    """The file that the README names."""
    config = read_config(ROOT / "benchmarks" / "nightly.toml")
    assert [cell.name for cell in config.cells()] == ["embedded, chat"]
