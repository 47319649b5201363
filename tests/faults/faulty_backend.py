"""A backend of another package whose rows come to grief on purpose: in a real worker, for real.

A row's id says what it does: ``faulty_load_segv`` crashes while it loads. ``FAULTS`` lists all. A
folder named by ``FAULTY_MARKS`` is told by an empty file of the row's name that it has come that
far; a row that waits goes on once there is a file ``ROW.go`` or ``go``.
"""

from __future__ import annotations

from pathlib import Path

STAGES = ("import", "load", "quantize", "measure", "score", "score_too")
"""A row ``faulty_wait_STAGE`` waits there."""
DEEDS = (
    "fine", "kill", "segv", "allocate", "noise", "binary", "flood", "garbage", "half_a_message",
    "close_channel", "end_stdin", "escape", "escape_and_die", "hang_native", "raise",
)  # fmt: skip
"""What ``faulty_DEED`` does while it loads; ``raise`` while it is scored."""
ROWS = tuple(f"faulty_wait_{stage}" for stage in STAGES) + tuple(f"faulty_{d}" for d in DEEDS)

_MODULE = '''
"""Rows that fail in the way that their name says."""
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from llmfit.backends.base import Progress, no_progress
from llmfit.quantize.cache import ArtifactCache
from llmfit.testing import FakeBackend, FakeDecoder, FakeModel

MARKS = Path(os.environ.get("FAULTY_MARKS", "."))
if os.environ.get("FAULTY_IMPORT_PRINTS"):
    print("printed by an import")
    os.write(1, b"written by an import\\n")
    ctypes.CDLL(None).printf(b"printed in C by an import\\n")


def mark(name):
    (MARKS / name).touch()


def wait(name):
    """Say so, and stay until told to go on."""
    mark(name)
    while not ((MARKS / "go").exists() or (MARKS / f"{name}.go").exists()):
        time.sleep(0.02)


def channel():
    """The worker's pipe to its parent: of its pipes the one that no standard stream is."""
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            pipe = os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")
            writes = fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        except OSError:
            continue
        if int(name) > 2 and pipe and writes:
            return int(name)
    raise AssertionError("no channel")


def grandchild():
    """One that outlives its parent, in a session of its own, and holds all that it inherits."""
    subprocess.Popen(["sleep", "600"], start_new_session=True, close_fds=False)


def deed_kill():
    os.kill(os.getpid(), signal.SIGKILL)


def deed_segv():
    ctypes.string_at(0)


def deed_allocate():
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 16))


def deed_noise():
    print("from Python")
    print("and to stderr", file=sys.stderr)
    os.write(1, b"by a system call\\n")
    libc = ctypes.CDLL(None)
    libc.printf(b"from C\\n")
    libc.fflush(None)
    print('{"stage": {"name": "fake", "done": 1, "total": 1}}', flush=True)
    os.system("echo from another program")


def deed_binary():
    os.write(1, bytes(range(256)) * 4096)


def deed_flood():
    for _ in range(400):
        os.write(1, b"the same line again and again\\n" * 4096)
    os.write(2, b"the end of the flood\\n")


def deed_garbage():
    os.write(channel(), b"\\xff\\x00 this is no message\\n")
    time.sleep(600)


def deed_half_a_message():
    os.write(channel(), b'{"stage": {"name": "lo')
    os._exit(3)


def deed_close_channel():
    os.close(channel())
    time.sleep(600)


def deed_end_stdin():
    os.close(0)


def deed_escape():
    descriptor = channel()
    os.set_inheritable(descriptor, True)
    grandchild()


def deed_escape_and_die():
    deed_escape()
    os._exit(4)


def deed_hang_native():
    """Native code that keeps every other Python thread waiting, for ever."""
    mark("hang_native")
    ctypes.PyDLL(None).sleep(600)


class Decoder(FakeDecoder):
    row = ""

    def step(self):
        if self.row == "faulty_wait_measure":
            wait(self.row)
        time.sleep(0.0005)
        super().step()


class Model(FakeModel):
    def __init__(self, row):
        super().__init__()
        self.row = row

    def decoder(self, *, batch, capacity, prefill_chunk=None):
        made = Decoder(batch, capacity, self.vocab_size)
        made.row = self.row
        return made

    def score(self, windows, *, batch_tokens, visit=None):
        if self.row.startswith("faulty_wait_score"):
            wait(self.row)
        if self.row == "faulty_raise":
            raise AttributeError("nobody foresaw this")
        yield from super().score(windows, batch_tokens=batch_tokens, visit=visit)


class Faulty(FakeBackend):
    calibrated = True

    def prepare(self, plan):
        mark(f"{self.id}.{os.getpid()}.pid")
        if self.id == "faulty_wait_import":
            wait(self.id)

    def load(self, plan, progress=no_progress):
        mark(f"{self.id}.load")
        if self.id == "faulty_wait_load":
            wait(self.id)
        if self.id == "faulty_wait_quantize":
            quantize(plan, progress)
        deed = globals().get(self.id.replace("faulty_", "deed_", 1))
        if deed is not None:
            deed()
        return Model(self.id)


def quantize(plan, progress):
    """An artifact that a child of the worker makes, as those of GPTQ and AWQ are."""
    from llmfit.child import converse

    def make(folder):
        progress("quantize", 0, 0)
        job = {"folder": str(folder)}
        assert converse("faulty_child", job, lambda message: None, cwd=str(folder)) == 0

    cache = ArtifactCache(Path(plan.cache_dir))
    cache.get_or_make("faulty", Path(plan.model.path), {"seed": plan.seed}, make)


ROWS = %r


def backend(row):
    return type(row, (Faulty,), {"id": row, "label": row})


globals().update({row: backend(row) for row in ROWS})
'''

_CHILD = '''
"""The quantising child: writes half of the artifact, waits, and writes the rest."""
import os
from pathlib import Path

from llmfit.child import job_and_send

if __name__ == "__main__":
    job, send = job_and_send()
    from faulty import mark, wait
    file = Path(job["folder"]) / "weights.bin"
    file.write_bytes(b"half")
    mark(f"child.{os.getpid()}.pid")
    wait("faulty_wait_quantize")
    file.write_bytes(b"whole")
    with (Path(os.environ["FAULTY_MARKS"]) / "made").open("a") as made:
        made.write("once\\n")
    send(done=True)
'''


def install(folder: Path) -> Path:
    """Make the package in ``folder`` and return it: for PYTHONPATH.

    transformers and what scores are missing there, as they are on some machines: a server that
    does not import them is up in a third of the time.
    """
    folder.mkdir(parents=True)
    (folder / "faulty.py").write_text(_MODULE % (ROWS,))
    (folder / "faulty_child.py").write_text(_CHILD)
    about = folder / "faulty-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    points = "".join(f"{row} = faulty:{row}\n" for row in ROWS)
    (about / "entry_points.txt").write_text(f"[llmfit.backends]\n{points}")
    return folder


def leave_out_heavy_packages(folder: Path) -> None:
    """Let imports of transformers and accelerate fail, as where they are not installed."""
    for name in ("transformers", "accelerate"):
        (folder / f"{name}.py").write_text("raise ImportError('left out')\n")
