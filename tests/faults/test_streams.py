"""Where output goes may be closed or full: one line says so, and what was measured is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_place import Place, ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_full_disk_behind_stdout_is_one_line(place: Place) -> None:
    """As where it is redirected to a file."""
    with Path("/dev/full").open("w") as full:
        returned, _, err = ended(place.start("plan", stdout=full))
    said = "llmfit: error: cannot write the result to stdout: No space left on device."
    assert (returned, err.splitlines()) == (1, [said])


@pytest.mark.parametrize(("closed", "code"), [("1", 1), ("0", 0), ("2", 0)])
def test_a_standard_stream_may_be_closed(place: Place, closed: str, code: int) -> None:
    """``>&-``: no file that is opened later takes the stream's place."""
    before = ["sh", "-c", f'exec {closed}>&- "$0" "$@"']
    returned, out, err = ended(place.start("plan", before=before))
    assert returned == code
    assert ("cannot write the result to stdout" in err) == (closed == "1")
    assert ("llmfit-embedded" in out) == (closed != "1")
    assert "Traceback" not in err


def test_a_reader_that_leaves_is_no_error_to_tell(place: Place) -> None:
    """``| head -1``."""
    process = place.start("backends")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    returned, _, err = ended(process)
    assert (returned, err) == (1, "")


@pytest.mark.slow
def test_what_was_measured_is_kept_though_nobody_reads_it(place: Place) -> None:
    """Stderr on a full disk, and a reader of stdout that has gone: the rows run to their end."""
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full:
        process = place.start(*place.words("faulty_fine"), stdout=writer, stderr=full)
    os.close(writer)
    assert ended(process)[0] == 1
    (run,) = place.stored()
    assert [row["status"] for row in run["rows"]] == ["ok"]
    place.assert_clean()


@pytest.mark.slow
def test_what_verbs_print_is_apart_from_what_libraries_do(place: Place) -> None:
    """A backend of another package prints while it is imported, in Python and in C."""
    told = place.start("backends", "--format", "json", FAULTY_IMPORT_PRINTS="1")
    returned, out, err = ended(told)
    assert returned == 0 and out.startswith("{") and "printed in C by an import" in err
    subprocess.run([sys.executable, "-m", "json.tool"], input=out, text=True, check=True)
