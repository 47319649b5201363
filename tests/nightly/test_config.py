"""A night's settings: what is read, and every wrong key at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfit.errors import UsageError
from llmfit.nightly.config import read_config
from llmfit.records import EvaluationSettings, Workload

FULL = """
title = "Lab"
machine = "lab-4090"
time_limit_h = 6
baseline = "last"
tag = "v2"

[defaults]
backends = ["bf16", "nf4"]
limit = 100
gpu_gb = 8

[workloads.chat]
prompt_tokens = 512
new_tokens = 64

[workloads.long]
prompt_tokens = 4096
batch = 2

[[models]]
model = "embedded"

[[models]]
model = "meta-llama/Llama-3.1-8B"
name = "Llama, quantised cache"
workloads = ["long"]
backends = ["gguf"]
kv_cache_dtype = "q8_0"
tasks = []
"""


def write(folder: Path, text: str) -> Path:
    """The text as a file."""
    path = folder / "night.toml"
    path.write_text(text)
    return path


def test_a_model_has_the_defaults_but_for_its_own(tmp_path: Path) -> None:
    """And a comparison for each of its workloads."""
    config = read_config(write(tmp_path, FULL))
    assert (config.title, config.machine, config.time_limit_h) == ("Lab", "lab-4090", 6)
    cells = config.cells()
    assert [cell.name for cell in cells] == [
        "embedded, chat", "embedded, long", "Llama, quantised cache, long",
    ]  # fmt: skip
    assert cells[0].workload == Workload(prompt_tokens=512, new_tokens=64)
    assert cells[0].evaluation() == EvaluationSettings(limit=100)
    assert cells[2].model.backends == ("gguf",) and cells[2].model.gpu_gb == 8
    assert cells[2].evaluation() is None


def test_least_is_one_model(tmp_path: Path) -> None:
    """Everything else is as ``llmfit compare`` has it."""
    (cell,) = read_config(write(tmp_path, '[[models]]\nmodel = "embedded"\n')).cells()
    assert cell.name == "embedded" and cell.workload is None and cell.model.backends is None
    assert cell.evaluation() == EvaluationSettings()


def test_a_night_is_known_by_its_text(tmp_path: Path) -> None:
    """Another byte is another night."""
    one = read_config(write(tmp_path, FULL)).digest
    assert read_config(write(tmp_path, FULL)).digest == one
    assert read_config(write(tmp_path, FULL + "# more")).digest != one


def test_paths_are_of_the_file_s_folder(tmp_path: Path) -> None:
    """Wherever it is run from: model, text, checkpoints, store."""
    (tmp_path / "text.txt").write_text("x")
    text = (
        'store = "results.db"\n[[models]]\nmodel = "./my-model"\ntext_file = "text.txt"\n'
        '[models.checkpoints]\nawq = "./my-awq"\ngptq = "org/name"\n'
    )
    config = read_config(write(tmp_path, text))
    assert config.store == str(tmp_path / "results.db")
    (cell,) = config.cells()
    assert cell.model.model == str(tmp_path / "my-model")
    assert cell.model.text_file == str(tmp_path / "text.txt")
    assert cell.model.checkpoints == {"awq": str(tmp_path / "my-awq"), "gptq": "org/name"}
    remote = read_config(write(tmp_path, text.replace("results.db", "postgresql://h/d")))
    assert remote.store == "postgresql://h/d"


WRONG = """
titel = "x"
time_limit_h = "six"
[defaults]
backends = ["bf16", "nf5"]
gpu_gb = -1
[workloads.chat]
prompt_tokns = 5
new_tokens = 1
[[models]]
model = "embedded"
workloads = ["chat", "long"]
text_file = "nowhere.txt"
device = "gpu"
[[models]]
modl = 3
"""


@pytest.mark.parametrize(
    "said",
    [
        "titel: unknown key; did you mean title?",
        "time_limit_h: Expected `float | null`, got `str`, not 'six'",
        "defaults.backends: unknown backend 'nf5'",
        "defaults.gpu_gb: must be above 0, not -1",
        "workloads.chat.prompt_tokns: unknown key; did you mean prompt_tokens?",
        "workloads.chat.new_tokens: must be 2 or more, not 1",
        "models[0].workloads: no [workloads.long]; there are: chat",
        "models[0].text_file: ",
        "models[0].device: unknown device 'gpu'",
        "models[1].modl: unknown key; did you mean model?",
        "models[1].model: missing",
    ],
)
def test_every_wrong_key_is_named(tmp_path: Path, said: str) -> None:
    """All in one error, each with its place."""
    with pytest.raises(UsageError, match="11 wrong keys") as refused:
        read_config(write(tmp_path, WRONG))
    assert f"\n  {said}" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "is not TOML"),
        ("", "at least one"),
        ('models = "x"', "at least one"),
        ("models = [3]", r"models\[0\]: must be a table, not 3"),
        ('workloads = 3\n[[models]]\nmodel = "embedded"', "workloads: must be a table"),
        ('[[models]]\nmodel = "a"\n[[models]]\nmodel = "a"', "'a' is measured twice"),
        ('time_limit_h = 0\n[[models]]\nmodel = "a"', "time_limit_h: must be above 0"),
        ('time_limit_h = nan\n[[models]]\nmodel = "a"', "time_limit_h: must be above 0"),
        ('[[models]]\nmodel = "a"\nram_gb = inf', "ram_gb: must be above 0, not inf"),
        (
            '[[models]]\nmodel = "a"\nobjective = "x"',
            "objective: Invalid enum value 'x'.*known are speed, quality, memory, balanced",
        ),
        (
            '[[models]]\nmodel = "a"\nkv_cache_dtype = "q5"',
            "kv_cache_dtype: Invalid enum value 'q5'.*known are q8_0, q4_0",
        ),
        pytest.param(
            '[[models]]\nmodel = "a"\ntasks = ["no_such_task_at_all"]',
            r"models\[0\]\.tasks",
            marks=pytest.mark.slow,  # imports lm-eval
        ),
    ],
)
def test_a_file_that_says_nothing_to_measure(tmp_path: Path, text: str, said: str) -> None:
    """A clear error, whatever is wrong."""
    with pytest.raises(UsageError, match=said):
        read_config(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, or not text."""
    with pytest.raises(UsageError, match="No such file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_config(tmp_path / "b.toml")


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 20_000, "a = " + "9" * 5_000, f"models = 3\ntitle = {[1] * 9999}"],
    ids=["deep", "digits", "long"],
)
def test_an_absurd_file_is_a_short_error(tmp_path: Path, text: str) -> None:
    """However deep or long it is."""
    with pytest.raises(UsageError) as refused:
        read_config(write(tmp_path, text))
    assert len(str(refused.value)) < 3_000


def test_a_fleet_s_night_has_a_cell_for_each_kind(tmp_path: Path) -> None:
    """Every model and workload on every kind; without kinds, on the only one that there is."""
    text = 'executor = "ray"\ngpu_kinds = ["A100", "cpu"]\n[[models]]\nmodel = "embedded"\n'
    config = read_config(write(tmp_path, text))
    assert [(cell.name, cell.kind) for cell in config.cells()] == [
        ("embedded, A100", "A100"),
        ("embedded, cpu", "cpu"),
    ]
    config = read_config(write(tmp_path, text.replace('gpu_kinds = ["A100", "cpu"]\n', "")))
    assert [(cell.name, cell.kind) for cell in config.cells()] == [("embedded", None)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('executor = "slurm"', "executor: "),
        ('gpu_kinds = ["A100"]', "gpu_kinds: means nothing without"),
        ('ray_address = "auto"', "ray_address: means nothing without"),
        ('executor = "ray"\ngpu_kinds = ["A100", "A100"]', "'A100' is named twice"),
    ],
)
def test_a_wrong_fleet_is_told(tmp_path: Path, line: str, told: str) -> None:
    """By its key."""
    with pytest.raises(UsageError) as refused:
        read_config(write(tmp_path, f'{line}\n[[models]]\nmodel = "embedded"\n'))
    assert told in str(refused.value)
