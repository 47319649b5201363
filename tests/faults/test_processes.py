"""A row's process may do anything, and any process may be killed: it costs its row alone."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_place import Place, ended, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks its workers"),
]

MISDEEDS = {
    "kill": "the worker was killed by SIGKILL during 'load' (often the system running out of",
    "segv": "the worker was killed by SIGSEGV during 'load'",
    "garbage": r"the worker sent what is no message during 'load': b'\xff\x00 this is no ",
    "half_a_message": "the worker ended with exit code 3 during 'load'",
    "close_channel": "the worker closed its pipe during 'load' and did not end",
    "escape_and_die": "the worker ended with exit code 4 during 'load'",
}
ODDITIES = ("noise", "binary", "flood", "end_stdin", "escape", "fine")
"""Rows that are odd and good all the same."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def rows(out: str) -> dict[str, dict[str, Any]]:
    """The rows of a comparison in JSON, by what they do."""
    found = json.loads(out)["rows"]
    return {row["backend"].removeprefix("faulty_"): row for row in found}


def test_what_a_row_does_costs_itself_alone(place: Place) -> None:
    """A crash, garbage, silence and a grandchild that stays are failed rows, the others are ok.

    Stdout is JSON and nothing else, whatever libraries print there in workers and in the program
    itself; the log of a row that prints 49 MB has 2 MB.
    """
    asked = [f"faulty_{deed}" for deed in (*MISDEEDS, *ODDITIES)]
    words = [*place.words(*asked), "--format", "json"]
    returned, out, err = ended(place.start(*words, FAULTY_IMPORT_PRINTS="1"))
    assert returned == 0, err
    found = rows(out)
    assert {d: found[d]["status"] for d in MISDEEDS} == dict.fromkeys(MISDEEDS, "failed")
    for deed, reason in MISDEEDS.items():
        assert found[deed]["reason"].startswith(reason)
    assert {d: found[d]["status"] for d in ODDITIES} == dict.fromkeys(ODDITIES, "ok")
    for printed in ("printed", "written", "printed in C"):
        assert f"{printed} by an import\n" in err
    (noise,) = place.runs.glob("*/faulty_noise.log")
    for said in ("from Python", "to stderr", "a system call", "from C", "another program"):
        assert said in noise.read_text()
    (flood,) = place.runs.glob("*/faulty_flood.log")
    assert 2_000_000 <= flood.stat().st_size < 2_000_200
    assert flood.read_text().endswith("the end of the flood\n")
    assert re.search(r"\[llmfit: \d+ bytes are left out here\]", flood.read_text())
    assert any("it printed 49.2 MB" in note for note in found["flood"]["notes"])
    assert not any("it printed" in note for note in found["binary"]["notes"])
    place.assert_clean()


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("segv", "faulty_segv ended with signal SIGSEGV during 'start'"),
        ("half_a_message", "faulty_half_a_message ended with exit code 3 during 'start'"),
    ],
)
def test_a_format_that_crashes_is_an_error_of_generate(
    place: Place, deed: str, reason: str
) -> None:
    """It is loaded in a child: no traceback, no crash of the program."""
    words = ["generate", "--backend", f"faulty_{deed}", "--prompt", "a"]
    returned, out, err = ended(place.start(*words, "--cache-dir", str(place.cache)))
    assert (returned, out) == (1, "")
    assert err.startswith(f"llmfit: error: {reason}")
    place.assert_clean()


def test_an_interrupt_of_generate_ends_what_quantises(place: Place) -> None:
    """Ctrl-C: exit 130, and neither the child, nor its own, nor what was half-made is left."""
    words = ["generate", "--backend", "faulty_wait_quantize", "--prompt", "a"]
    process = place.start(*words, "--cache-dir", str(place.cache))
    place.reached("faulty_wait_quantize", process)
    os.killpg(process.pid, signal.SIGINT)
    returned, out, err = ended(process)
    assert (returned, out, err) == (130, "", "llmfit: interrupted.\n")
    place.assert_clean()


def test_a_worker_that_is_killed_from_outside_costs_its_row(place: Place) -> None:
    """kill -9 at each stage: the row names it, and the one after them is measured."""
    stages = ("import", "load", "quantize", "measure")
    waiting = [f"faulty_wait_{stage}" for stage in stages]
    process = place.compare(*waiting, "faulty_fine", format="json")
    for row in waiting:
        place.reached(row, process)
        (worker,) = place.workers(row)
        os.kill(worker, signal.SIGKILL)
    returned, out, err = ended(process)
    assert returned == 0, err
    found = rows(out)
    assert found.pop("fine")["status"] == "ok"
    for stage, row in zip(stages, found.values(), strict=True):
        assert row["status"] == "failed"
        assert f"killed by SIGKILL during '{stage}'" in row["reason"]
    place.assert_clean()


def test_a_time_limit_ends_a_row_with_all_that_it_started(place: Place) -> None:
    """Loading, measuring, and quantising in a child of the worker's; the artifact is not there."""
    waiting = [f"faulty_wait_{stage}" for stage in ("load", "measure", "quantize")]
    returned, out, err = ended(
        place.compare(*waiting, "faulty_fine", format="json", time_limit="2")
    )
    assert returned == 0, err
    found = rows(out)
    assert found.pop("fine")["status"] == "ok"
    for stage, row in zip(("load", "measure", "quantize"), found.values(), strict=True):
        assert row["status"] == "failed"
        assert f"time limit of 2 s reached during '{stage}'" in row["reason"]
    assert list(place.marks.glob("child.*.pid")), "the quantising child had begun"
    assert not list(place.cache.glob("faulty-*"))
    place.assert_clean()


def test_memory_without_end_does_not_fit(place: Place) -> None:
    """A row that takes ever more is stopped at its budget of RAM; the next one is inside it."""
    returned, out, err = ended(
        place.compare("faulty_allocate", "faulty_fine", format="json", ram_gb="1.2")
    )
    assert returned == 0, err
    found = rows(out)
    assert found["fine"]["status"] == "ok", found["fine"]["reason"]
    assert found["allocate"]["status"] == "does_not_fit"
    assert "budget" in found["allocate"]["reason"] and "1.20 GB" in found["allocate"]["reason"]
    place.assert_clean()


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A control group of 1.5 GB, version 1 or 2; its file takes process ids."""
    group = limited_group(1_500_000_000)
    if group is None:
        pytest.skip("no control group of memory can be made here")
    yield group / "cgroup.procs"
    wait_until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def limited_group(size_bytes: int) -> Path | None:
    """A new control group, whose processes hold so much together at most, and swap nothing."""
    name = f"llmfit-test-{uuid.uuid4().hex}"
    for root, limits in (
        ("memory", {"memory.limit_in_bytes": size_bytes, "memory.swappiness": 0}),
        ("", {"memory.max": size_bytes, "memory.swap.max": 0}),
    ):
        group = Path("/sys/fs/cgroup") / root / name
        try:
            group.mkdir()
        except OSError:
            continue
        if all((group / limit).exists() for limit in limits):
            for limit, value in limits.items():
                (group / limit).write_text(str(value))
            return group
        group.rmdir()
    return None


def test_the_system_out_of_memory_is_a_failed_row(place: Place, memory_cgroup: Path) -> None:
    """Without a budget the kernel kills the largest process, which is the row's own."""
    words = [*place.words("faulty_allocate", "faulty_fine"), "--format", "json"]
    join = f'echo $$ > {memory_cgroup} && exec "$0" "$@"'
    returned, out, err = ended(place.start(*words, before=["sh", "-c", join]))
    assert returned == 0, err
    found = rows(out)
    assert found["allocate"]["status"] == "failed"
    assert found["allocate"]["reason"].startswith(MISDEEDS["kill"])
    assert found["fine"]["status"] == "ok"
    place.assert_clean()


@pytest.mark.parametrize("row", ["faulty_wait_quantize", "faulty_hang_native"])
def test_nothing_outlives_the_program(place: Place, row: str) -> None:
    """kill -9 of the program: not a quantising child, not native code that lets nothing else run.

    What was half-made is swept by the next run, which goes on and has all rows.
    """
    process = place.compare("faulty_fine", row)
    place.reached(row.replace("faulty_hang", "hang"), process)
    assert len(place.processes()) >= 3  # the program, the server, the worker
    process.kill()
    returned, _, _ = ended(process)
    assert returned == -signal.SIGKILL
    wait_until(lambda: not place.processes(), 10)
    assert not place.processes()
    if row == "faulty_hang_native":
        place.assert_clean()
        return
    place.let_go()
    returned, _, err = ended(place.compare("faulty_fine", row, resume="last"))
    assert returned == 0 and "faulty_fine" not in err, err  # it had been finished
    (run,) = place.stored()
    assert [each["status"] for each in run["rows"]] == ["ok", "ok"]
    assert len(list(place.cache.glob("faulty-*"))) == 1
    place.assert_clean()


def test_a_server_that_imports_ends_with_the_program(tmp_path: Path) -> None:
    """kill -9 while torch and all that scores is being imported for the workers."""
    place = Place(tmp_path, scores=True)
    process = place.compare("faulty_fine", tasks="wikitext", limit="1")
    wait_until(lambda: any(imports(each) for each in place.processes()))
    process.kill()
    ended(process)
    place.assert_clean()


def imports(process: psutil.Process) -> bool:
    """True for a fork server that has begun to import."""
    try:
        return "llmfit.runner.forkserver" in process.cmdline() and process.memory_info().rss > 5e7
    except psutil.Error:
        return False


def test_a_server_that_dies_costs_its_row_at_most(place: Place) -> None:
    """Its worker goes on by itself, and the next rows' processes are started anew, as safely."""
    asked = ("faulty_wait_load", "faulty_escape_and_die", "faulty_escape", "faulty_hang_native")
    process = place.compare(*asked, format="json", time_limit="60")
    place.reached("faulty_wait_load", process)
    (worker,) = place.workers("faulty_wait_load")
    server = psutil.Process(worker).parent()
    assert server is not None and "llmfit.runner.forkserver" in server.cmdline()
    server.kill()
    place.let_go()
    place.reached("hang_native", process)
    process.kill()
    ended(process)
    place.assert_clean()
    kept = {path.stem: json.loads(path.read_text()) for path in place.runs.glob("*/*.json")}
    found = {row: kept[row]["status"] for row in asked[:-1]}
    assert found == dict(zip(asked[:-1], ("ok", "failed", "ok"), strict=True))


def test_an_error_nobody_foresaw_costs_no_figure(place: Place) -> None:
    """Raised while the row is scored: what was timed stays, the log has the whole trace."""
    returned, out, err = ended(
        place.start(*place.words("faulty_raise", tasks="wikitext"), "--format", "json")
    )
    assert returned == 1, err
    row = rows(out)["raise"]
    assert row["status"] == "failed"
    assert row["reason"].startswith("AttributeError: nobody foresaw this (faulty.py:")
    assert row["decode"] is not None and row["memory"] is not None
    (log,) = place.runs.glob("*/faulty_raise.log")
    assert "Traceback" in log.read_text()
    place.assert_clean()
