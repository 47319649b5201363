"""Ctrl-C, a kill and a closed terminal, at every stage: nothing is lost, and nothing is left."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fault_place import ROOT, Place, ended, heed_hangup, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks its workers"),
]

WAITING = [f"faulty_wait_{stage}" for stage in ("import", "load", "quantize", "measure")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def statuses(place: Place) -> list[str]:
    """Of the rows of the only run."""
    (run,) = place.stored()
    return [row["status"] for row in run["rows"]]


def test_every_stage_can_be_stopped_and_gone_on_with(place: Place) -> None:
    """Each time the rows before are kept and one line says how to go on, which ends with all."""
    sent = {
        "faulty_wait_import": (signal.SIGINT, 130),
        "faulty_wait_load": (signal.SIGINT, 130),
        "faulty_wait_quantize": (signal.SIGTERM, 143),
        "faulty_wait_measure": (signal.SIGHUP, 129),
    }
    resume: dict[str, str] = {}
    for done, (row, (number, code)) in enumerate(sent.items()):
        process = place.compare(*WAITING, **resume)
        place.reached(row, process)
        for _ in range(4 if row == "faulty_wait_load" else 1):  # impatient fingers
            os.killpg(process.pid, number)
            time.sleep(0.05)
        returned, out, err = ended(process)
        assert returned == code, err
        assert err.splitlines()[-2:] == [
            f"llmfit: interrupted; {done} of 4 rows were finished, and are kept.",
            "Try: the same with --resume last",
        ]
        assert "Traceback" not in err and row in out
        assert statuses(place) == ["ok"] * done + ["skipped"] * (4 - done)
        place.assert_clean()
        assert len(list(place.cache.glob("faulty-*"))) == (done == 3)
        place.let_go(row)
        resume = {"resume": "last"}
    returned, out, err = ended(place.compare(*WAITING, **resume))
    assert returned == 0 and statuses(place) == ["ok"] * 4, err
    assert "--resume" not in out  # the command that measures all of it again
    assert (place.marks / "made").read_text() == "once\n"
    place.assert_clean()


@pytest.mark.parametrize(("last_key", "code"), [(b"\x03\x03", 130), (None, 129)])
def test_a_terminal_that_is_closed_is_as_good_as_ctrl_c(
    place: Place, last_key: bytes | None, code: int
) -> None:
    """On a real one, where bars are drawn: Ctrl-C twice at once, or the window is closed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place.folder)
        heed_hangup()
        words = [sys.executable, "-m", "llmfit", *place.words("faulty_wait_load")]
        os.execve(sys.executable, words, {**place.environment, "TERM": "xterm"})
    drawn = b""
    try:
        while not (place.marks / "faulty_wait_load").exists():
            drawn += os.read(terminal, 1 << 16)
        if last_key is None:
            os.close(terminal)
        else:
            for key in last_key:
                os.write(terminal, bytes([key]))
                time.sleep(0.05)
            drawn += rest(terminal)
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert os.waitstatus_to_exitcode(status) == code
    assert b"faulty_wait_load" in drawn and b"Traceback" not in drawn
    assert (b"--resume last" in drawn) == (last_key is not None)
    assert statuses(place) == ["skipped"]
    place.assert_clean()


def rest(terminal: int) -> bytes:
    """What is still drawn, until the program ends."""
    drawn = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            drawn += piece
    except OSError:  # Linux's way of saying that the other end is closed
        pass
    os.close(terminal)
    return drawn


def test_scoring_can_be_stopped(tmp_path: Path) -> None:
    """With all that scoring imports: a killed row is failed, an interrupted one is to be run."""
    place = Place(tmp_path, scores=True)
    process = place.compare(
        "faulty_wait_score", "faulty_wait_score_too", tasks="wikitext", limit="1"
    )
    place.reached("faulty_wait_score", process)
    (worker,) = place.workers("faulty_wait_score")
    os.kill(worker, signal.SIGKILL)
    place.reached("faulty_wait_score_too", process)
    os.killpg(process.pid, signal.SIGINT)
    returned, _, err = ended(process)
    assert returned == 130 and "1 of 2 rows" in err and "Traceback" not in err
    ((killed, interrupted),) = (run["rows"] for run in place.stored())
    assert killed["status"] == "failed" and "killed by SIGKILL during" in killed["reason"]
    assert interrupted["status"] == "skipped"
    place.assert_clean()


def test_before_the_first_row_there_is_nothing_to_lose(place: Place) -> None:
    """While the machine is asked what it is, nothing is kept and nothing is said of going on."""
    process = place.compare("faulty_fine")
    wait_until(lambda: len(place.processes()) > 1)
    os.killpg(process.pid, signal.SIGINT)
    returned, out, err = ended(process)
    assert (returned, out) == (130, "")
    assert err == "llmfit: interrupted before the first row; nothing was measured.\n"
    assert not place.runs.exists()
    place.assert_clean()


def test_hashing_can_be_stopped(place: Place) -> None:
    """A file of 8 GB that a row reads is hashed before its worker is started."""
    large = place.folder / "calibration.txt"
    with large.open("wb") as stream:
        stream.truncate(8 * 10**9)  # takes no place on the disk
    process = place.compare("faulty_fine", calibration=str(large))
    assert process.stderr is not None
    assert process.stderr.readline() == "[1/1] faulty_fine …\n"
    os.killpg(process.pid, signal.SIGINT)
    returned, _, err = ended(process)
    assert returned == 130 and "0 of 1 rows" in err and "Traceback" not in err
    assert not place.workers("faulty_fine")
    place.assert_clean()


def test_writing_can_be_stopped(place: Place) -> None:
    """A result goes to a pipe that nobody reads: the run is whole all the same."""
    os.mkfifo(place.folder / "result.json")
    words = place.words("faulty_fine")
    process = place.start(*words, "--format", "json", "--out", "result.json")
    wait_until(lambda: waits_for_a_reader(process))
    os.killpg(process.pid, signal.SIGINT)
    returned, out, err = ended(process)
    assert returned == 130 and err.endswith("llmfit: interrupted.\n") and "Traceback" not in err
    assert "faulty_fine" in out and statuses(place) == ["ok"]
    place.assert_clean()


def test_a_plan_can_be_stopped(place: Place) -> None:
    """It keeps nothing, so there is one line."""
    os.mkfifo(place.folder / "plan.json")
    process = place.start("plan", "--format", "json", "--out", "plan.json")
    wait_until(lambda: waits_for_a_reader(process))
    os.killpg(process.pid, signal.SIGINT)
    returned, _, err = ended(process)
    assert (returned, err) == (130, "llmfit: interrupted.\n")
    place.assert_clean()


def waits_for_a_reader(process: subprocess.Popen[str]) -> bool:
    """True where it is opening a named pipe."""
    return b"wait_for_partner" in Path(f"/proc/{process.pid}/wchan").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_study_leaves_nothing(place: Place, number: signal.Signals) -> None:
    """Its process ends with the command, and takes its folder with it."""
    process = place.start("study", "attention", "--threads", "1", "--out", str(place.folder / "o"))
    wait_until(lambda: any(p.num_threads() > 1 for p in studies(place)))
    assert len(list(place.temporary.iterdir())) == 1
    os.killpg(process.pid, number)
    returned, _, err = ended(process)
    assert returned == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    place.assert_clean()


def test_a_study_whose_parent_is_gone_at_once_leaves_nothing(tmp_path: Path) -> None:
    """It finds its stdin closed right behind the job, before it has begun."""
    for number in range(5):  # it would be a race between two threads
        scratch = tmp_path / str(number)
        scratch.mkdir()
        job = {"name": "attention", "options": {"threads": 1}, "scratch": str(scratch)}
        words = [sys.executable, "-m", "llmfit.study"]
        child = subprocess.run(words, input=json.dumps(job) + "\n", text=True, cwd=ROOT)
        assert child.returncode == 1
        assert not any(tmp_path.iterdir())


def studies(place: Place) -> list[psutil.Process]:
    """Processes that run a study."""
    return [p for p in place.processes() if "llmfit.study" in p.cmdline()]


def test_a_night_is_gone_on_with(place: Place) -> None:
    """By the script that cron calls: the same command again, and its cells are all there."""
    settings = place.folder / "night.toml"
    settings.write_text(
        f'title = "night"\nstore = "{place.folder}/night.db"\n'
        '[defaults]\nbackends = ["faulty_fine", "faulty_wait_load"]\ntasks = []\nthreads = 1\n'
        "[workloads.short]\nprompt_tokens = 8\nnew_tokens = 4\nrepeats = 5\nwarmup = 0\n"
        '[[models]]\nmodel = "embedded"\n'
    )
    words = [
        "--config", str(settings), "--out", str(place.folder / "report"),
        "--runs-dir", str(place.runs), "--cache-dir", str(place.cache),
    ]  # fmt: skip
    process = nightly_report(place, words)
    place.reached("faulty_wait_load", process)
    os.killpg(process.pid, signal.SIGTERM)
    returned, _, err = ended(process)
    assert returned == 143 and "the same command goes on from there" in err, err
    assert "Traceback" not in err
    place.assert_clean()
    place.let_go()
    returned, _, err = ended(nightly_report(place, words))
    assert returned == 0 and "faulty_fine" not in err, err  # it was finished already
    assert statuses(place) == ["ok", "ok"]
    place.assert_clean()


def nightly_report(place: Place, words: list[str]) -> subprocess.Popen[str]:
    """Start the script with this Python as its environment, where nothing is to be installed."""
    scripts = place.folder / "venv" / "bin"
    scripts.mkdir(parents=True, exist_ok=True)
    (scripts / "python").touch(mode=0o755)
    (scripts / "llmfit").write_text(f'#!/bin/sh\nexec {sys.executable} -m llmfit "$@"\n')
    (scripts / "llmfit").chmod(0o755)
    code = 'echo "all,test,dev $(cksum < pyproject.toml)"'
    told = subprocess.run(code, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    (place.folder / "venv" / ".llmfit-installed").write_text(told.stdout)
    return subprocess.Popen(
        [str(ROOT / "scripts" / "nightly_report"), *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**place.environment, "LLMFIT_VENV": str(place.folder / "venv")}, process_group=0,
    )  # fmt: skip
