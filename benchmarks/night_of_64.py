"""A night of 64 models of which 13 are faulty, each in another way, interrupted half-way.

    python benchmarks/night_of_64.py [--models 64] [--out FILE]

Makes small random models in folders of their own, spoils every fifth (weights cut short, a config
that is no text, a pickle, a backend that kills itself, …), and runs `scripts/nightly_report` over
all of them for real. It is stopped by Ctrl-C half-way and started again. Then every good model must
have its rows, once, in the report and in the store, and every faulty one its reason. Exit code 1
where anything is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from llmfit.device.cpu import cpu_name, physical_cores
from llmfit.files import write_atomically
from llmfit.models import data_path
from llmfit.records import from_json, to_json
from llmfit.store.store import Store
from llmfit.trend_records import NightResult, Report

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = (str(ROOT / "scripts" / "nightly_report"),)
BACKENDS = ("bf16",)
_SLOW_S = 4
_NIGHT = f"""\
title = "A night of many models"
machine = "lab"
store = "store.db"

[defaults]
backends = {list(BACKENDS)}
tasks = []
threads = 1

[workloads.short]
prompt_tokens = 16
new_tokens = 4
"""
_PLUGIN = """
import os, signal, time
from llmfit.testing import FakeBackend

class KillsItself(FakeBackend):
    id = label = "kills-itself"
    def load(self, plan, progress=None):
        os.kill(os.getpid(), signal.SIGKILL)

class NeverEnds(FakeBackend):
    id = label = "never-ends"
    def load(self, plan, progress=None):
        time.sleep(3600)
"""


# ---------------------------------------------------------------- models


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way in which an entry of a night is faulty."""

    name: str
    spoil: Callable[[Path], None]
    """What is done to the folder of a good model."""
    said: str
    """Regular expression of the reason that the report must give."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of its own table."""


def _edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def _plant_nan(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "mlp" in name)
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle_only(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _shard_outside(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"model_type": "\xff\xfe"}')


def _leave(folder: Path) -> None:
    """The fault lies elsewhere."""


FAULTS = (
    Fault(name="missing-folder", spoil=shutil.rmtree, said="no folder"),
    Fault(name="kills-itself", spoil=_leave, said="killed by SIGKILL",
          settings={"backends": ["kills-itself"]}),
    Fault(name="cut-weights", spoil=_cut, said="model.safetensors is damaged"),
    Fault(name="nan-weights", spoil=_plant_nan, said="not finite"),
    Fault(name="never-ends", spoil=_leave, said="time limit of 4 s reached",
          settings={"backends": ["never-ends"], "row_time_limit_s": _SLOW_S}),
    Fault(name="no-model-type", spoil=lambda folder: _edit(folder, model_type=None),
          said="model_type"),
    Fault(name="absurd-size", spoil=lambda folder: _edit(folder, vocab_size=-1),
          said="vocab_size"),
    Fault(name="no-tokenizer", spoil=_no_tokenizer, said="has no tokenizer"),
    Fault(name="empty-folder", spoil=_empty, said="has no config.json"),
    Fault(name="config-no-text", spoil=_no_text, said="UTF-8"),
    Fault(name="wrong-shapes", spoil=lambda folder: _edit(folder, intermediate_size=96),
          said="shape|size"),
    Fault(name="shard-outside", spoil=_shard_outside, said="not a file of its own folder"),
    Fault(name="pickle-only", spoil=_pickle_only, said="pickle"),
)  # fmt: skip
"""Thirteen, of which no two fail in one place."""


def make_model(folder: Path) -> Path:
    """A random model of two layers with the embedded model's tokenizer, in bfloat16."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in data_path("embedded").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """The settings of a night, and what is to come out."""

    config: Path
    good: tuple[str, ...]
    faulty: dict[str, Fault]
    """By the entry's name."""

    @property
    def entries(self) -> int:
        """Models of the night."""
        return len(self.good) + len(self.faulty)


def make_night(work: Path, models: int, faults: Sequence[Fault] = FAULTS) -> Night:
    """``models`` entries in ``work``, the faulty ones spread evenly among the good."""
    good_model = make_model(work / "model")
    every = models // len(faults)
    tables, good, faulty = [_NIGHT], [], {}
    for number in range(models):
        place, rest = divmod(number, every)
        fault = faults[place] if rest == every - 1 and place < len(faults) else None
        name = f"m{number:02d}-{fault.name if fault else 'good'}"
        shutil.copytree(good_model, work / name)
        settings: dict[str, Any] = {"model": f"./{name}", "name": name}
        if fault is None:
            good.append(name)
        else:
            fault.spoil(work / name)
            faulty[name] = fault
            settings |= fault.settings
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        tables.append("\n".join(["[[models]]", *lines]))
    config = work / "night.toml"
    config.write_text("\n".join(tables))
    _install_plugin(work / "plugin")
    return Night(config=config, good=tuple(good), faulty=faulty)


def _install_plugin(folder: Path) -> None:
    """The two faulty backends as a package of their own."""
    about = folder / "faulty_night-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "faulty_night.py").write_text(_PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty_night\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[llmfit.backends]\n"
        "kills-itself = faulty_night:KillsItself\nnever-ends = faulty_night:NeverEnds\n"
    )


# ---------------------------------------------------------------- running


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the command ended."""

    code: int
    seconds: float
    began: tuple[str, ...]
    """The entries that it ran, in order."""
    said: str
    """Its stderr."""


def run(night: Night, *, command: Sequence[str] = SCRIPT, stop_at: int | None = None) -> Outcome:
    """Run the night; by Ctrl-C stopped when the entry ``stop_at`` (from 1) begins."""
    work = night.config.parent
    for name in ("tmp", "runs", "cache"):
        (work / name).mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(work / "plugin"), os.environ.get("PYTHONPATH")])
        ),
        "TMPDIR": str(work / "tmp"),
    }
    options = ["--config", str(night.config), "--out", str(work / "report")]
    options += ["--runs-dir", str(work / "runs"), "--cache-dir", str(work / "cache")]
    began, lines = [], []
    start = time.monotonic()
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if found := re.match(rf"\[(\d+)/{night.entries}\] ([^,\n]+)", line):
                began.append(found[2])
                if int(found[1]) == stop_at:
                    os.killpg(process.pid, signal.SIGINT)
    return Outcome(
        code=process.returncode,
        seconds=time.monotonic() - start,
        began=tuple(began),
        said="".join(lines),
    )


# ---------------------------------------------------------------- what must be there


def problems(night: Night, first: Outcome, second: Outcome) -> list[str]:
    """What is not as it must be after the night was stopped and went on; empty: all is."""
    work = night.config.parent
    found = []
    if first.code != 130:
        found.append(f"the stopped run ended with {first.code}, not 130: {first.said[-500:]}")
    if second.code != 1:
        found.append(f"the run that went on ended with {second.code}, not 1: {second.said[-500:]}")
    for name in ("report.html", "report.md", "report.json", "junit.xml"):
        if not (work / "report" / name).is_file():
            found.append(f"{name} is missing")
    if found:
        return found
    report = from_json(Report, (work / "report" / "report.json").read_bytes())
    assert report.night is not None
    found += _in_report(night, report, report.night)
    found += _in_store(night, report.night)
    found += [f"left in TMPDIR: {path}" for path in (work / "tmp").rglob("*")]
    repeated = set(first.began[:-1]) & set(second.began) & set(night.good)
    found += [f"{name} was run again" for name in sorted(repeated)]
    return found


def reasons(night: Night) -> dict[str, str]:
    """What the report says of each faulty entry, by its name."""
    report = from_json(Report, (night.config.parent / "report" / "report.json").read_bytes())
    assert report.night is not None
    said = {cell.name.split(",")[0]: str(cell.reason) for cell in report.night.cells}
    return {name: said[name] for name in night.faulty}


def _in_report(night: Night, report: Report, result: NightResult) -> list[str]:
    folder = night.config.parent / "report"
    page, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
    cases = ElementTree.parse(folder / "junit.xml").getroot().findall("testsuite/testcase")
    errors = Counter(case.get("name") for case in cases if case.find("error") is not None)
    cells = {cell.name.split(",")[0]: cell for cell in result.cells}
    ran = {each.model.name: each for each in report.comparisons}
    found = []
    if len(result.cells) != night.entries:
        found.append(f"the report has {len(result.cells)} entries, not {night.entries}")
    for name in night.good:
        cell = cells[name]
        if (cell.status, cell.rows_ok) != ("done", len(BACKENDS)) or name not in ran:
            found.append(f"{name}: {cell.status}, {cell.rows_ok} rows: {cell.reason}")
    for name, fault in night.faulty.items():
        cell = cells[name]
        if cell.status != "failed" or not re.search(fault.said, str(cell.reason)):
            found.append(f"{name}: {cell.status}, not with {fault.said!r}: {cell.reason}")
        if errors[cell.name] != 1:
            found.append(f"{name}: {errors[cell.name]} errors in junit.xml")
    for name in cells:
        found += [
            f"{name} is not in {kind}"
            for kind, content in (("report.html", page), ("report.md", text))
            if name not in content
        ]
    return found


def _in_store(night: Night, result: NightResult) -> list[str]:
    """Every good entry once, ended, with all rows; nothing of another night."""
    with Store(night.config.parent / "store.db") as store:
        lines = store.history()
    ended = Counter(line.model for line in lines if line.ended)
    rows = {line.model: line.rows for line in lines}
    found = [f"{line.run_id} has not ended" for line in lines if not line.ended]
    found += [f"{x.run_id} is of another night" for x in lines if x.session_id != result.session_id]
    for name in night.good:
        if ended[name] != 1 or any(row.status != "ok" for row in rows[name]):
            found.append(f"{name}: stored {ended[name]} times, {rows.get(name)}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the script measured."""

    entries: int
    good: int
    seconds: tuple[float, float]
    """Until it was stopped, and from going on to the end."""
    reasons: dict[str, str]
    problems: tuple[str, ...]
    cpu: str
    cpu_cores: int
    python: str


def main() -> int:
    """Make, run, stop, go on, check, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # A shell starts what it runs in the background with Ctrl-C ignored, which processes inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="llmfit-night-") as folder:
        night = make_night(Path(folder), args.models)
        first = run(night, stop_at=args.models // 2)
        second = run(night)
        wrong = problems(night, first, second)
        said = {} if second.code not in (0, 1, 3) else reasons(night)
    said = {name: reason.replace(folder, "…") for name, reason in said.items()}
    result = Result(
        entries=night.entries,
        good=len(night.good),
        seconds=(first.seconds, second.seconds),
        reasons=said,
        problems=tuple(wrong),
        cpu=cpu_name(),
        cpu_cores=physical_cores(),
        python=platform.python_version(),
    )
    print(f"{night.entries} models, {len(night.faulty)} of them faulty")
    print(f"{first.seconds:.0f} s until Ctrl-C, {second.seconds:.0f} s from there to the end")
    for name, reason in said.items():
        print(f"  {name}: {reason}")
    print("\n".join(f"WRONG {each}" for each in wrong) or "every good row is there, once")
    if args.out is not None:
        write_atomically(args.out, to_json(result) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
