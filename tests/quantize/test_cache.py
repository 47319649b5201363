"""The artifact cache: one make per content and settings, whole or absent, shared by processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmfit.errors import ModelNotFound, StoreError, UsageError
from llmfit.quantize.cache import ArtifactCache


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache")


class Maker:
    """Writes one file and counts its calls."""

    def __init__(self, text: str = "artifact") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "weights.bin").write_text(self.text)


def test_second_call_is_served(cache: ArtifactCache, model: Path) -> None:
    """An artifact is made once; the second call gives the same folder and no seconds."""
    maker = Maker()
    first = cache.get_or_make("gptq", model, {"bits": 4}, maker)
    second = cache.get_or_make("gptq", model, {"bits": 4}, maker)
    assert (first.path, maker.calls, second.make_s) == (second.path, 1, None)
    assert first.make_s is not None and first.make_s >= 0
    assert (first.path / "weights.bin").read_text() == "artifact"
    assert first.notes == second.notes == ()


def test_key_follows_content_and_settings(cache: ArtifactCache, model: Path) -> None:
    """Other weights, tokenizer, settings or kind give another artifact; a README does not."""
    maker = Maker()

    def folder(kind: str = "gptq", bits: int = 4) -> Path:
        return cache.get_or_make(kind, model, {"bits": bits}, maker).path

    seen = [folder(), folder(bits=8), folder(kind="awq")]
    (model / "tokenizer.json").write_text("{}")
    seen.append(folder())
    # The same size: only the content tells.
    (model / "model.safetensors").write_bytes(b"WEIGHTS" * 1000)
    seen.append(folder())
    assert len(set(seen)) == len(seen) == maker.calls
    (model / "README.md").write_text("words")
    assert folder() == seen[-1]


def test_key_does_not_depend_on_the_place(cache: ArtifactCache, model: Path) -> None:
    """A moved model finds its artifact."""
    first = cache.get_or_make("gptq", model, {}, Maker())
    moved = model.rename(model.with_name("elsewhere"))
    again = cache.get_or_make("gptq", moved, {}, Maker())
    assert (again.path, again.make_s) == (first.path, None)


def test_warm_hash_reads_no_weights(
    cache: ArtifactCache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the memory warm the weights' content is not read again."""
    cache.get_or_make("gptq", model, {}, Maker())
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k)
    )
    cache.get_or_make("gptq", model, {}, Maker())
    assert [path.name for path in opened if path.parent == model] == []


def test_failing_make_leaves_nothing(cache: ArtifactCache, model: Path) -> None:
    """What ``make`` raises comes through, no trace of its files stays, and a retry works."""

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        cache.get_or_make("awq", model, {}, fail)
    assert [path for path in cache.root.rglob("*") if path.name == "half"] == []
    assert cache.entries() == ()
    assert cache.get_or_make("awq", model, {}, Maker()).make_s is not None


def test_damaged_artifact_is_listed_and_made_again(cache: ArtifactCache, model: Path) -> None:
    """A truncated file or a broken manifest is named by entries() and repaired on demand."""
    maker = Maker()
    folder = cache.get_or_make("gguf", model, {}, maker).path
    (folder / "weights.bin").write_text("art")
    (entry,) = cache.entries()
    assert entry.damaged == "weights.bin has 3 bytes instead of 8"
    again = cache.get_or_make("gguf", model, {}, maker)
    assert again.make_s is not None
    assert again.notes == (
        "the cached artifact was damaged (weights.bin has 3 bytes instead of 8): made again",
    )
    for broken in ("{", "[]", '{"format": 1, "files": {}}', '{"format": 2, "files": {"a": 1}}'):
        (folder / "artifact.json").write_text(broken)
        (entry,) = cache.entries()
        assert entry.damaged is not None and entry.kind == "gguf"
    assert [removed.key for removed in cache.clear()] == [folder.name]
    assert cache.entries() == ()


def test_other_content_of_the_same_size_is_seen_before_it_is_served(
    cache: ArtifactCache, model: Path
) -> None:
    """A bit that a disk forgot, size and time as they were: found, told, and made again."""
    folder = cache.get_or_make("gguf", model, {}, Maker()).path
    file = folder / "weights.bin"
    before = file.stat()
    file.write_text("ARTIFACT")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.entries()[0].damaged is None  # what the names and sizes tell
    why = "the content of weights.bin is not what was written"
    assert cache.entries(read_over=True)[0].damaged == why
    again = cache.get_or_make("gguf", model, {}, Maker())
    assert again.notes == (f"the cached artifact was damaged ({why}): made again",)
    assert file.read_text() == "artifact"
    assert cache.entries(read_over=True)[0].damaged is None


def test_an_artifact_of_older_code_is_made_again_in_its_place(
    cache: ArtifactCache, model: Path
) -> None:
    """Its manifest holds no checksums, so nobody knows whether it is whole."""
    folder = cache.get_or_make("gguf", model, {}, Maker()).path
    manifest = json.loads((folder / "artifact.json").read_text())
    manifest |= {"format": 1, "files": {"weights.bin": 8}}
    (folder / "artifact.json").write_text(json.dumps(manifest))
    again = cache.get_or_make("gguf", model, {}, Maker())
    assert again.path == folder and "not of format 2" in again.notes[0]


def test_what_is_being_made_is_private_and_what_is_made_is_shared(
    cache: ArtifactCache, model: Path
) -> None:
    """Nobody else puts a file into a half-made artifact; the whole one has the user's umask."""
    seen = []

    def make(folder: Path) -> None:
        seen.append(stat.S_IMODE(folder.parent.stat().st_mode))
        (folder / "weights.bin").touch()

    before = os.umask(0o022)
    try:
        made = cache.get_or_make("gptq", model, {}, make).path
    finally:
        os.umask(before)
    assert seen == [0o700]
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    assert stat.S_IMODE((made / "weights.bin").stat().st_mode) == 0o644


def test_entries_and_clear(cache: ArtifactCache, model: Path) -> None:
    """entries() tells kind, model, size and settings; clear() removes what it is told, only."""
    cache.get_or_make("gptq", model, {"bits": 4, "act": False}, Maker("12345"))
    kept = cache.get_or_make("awq", model, {}, Maker()).path
    entry = next(entry for entry in cache.entries() if entry.kind == "gptq")
    assert (entry.model, entry.size_bytes, entry.damaged) == ("tiny-model", 5, None)
    assert entry.settings == {"bits": 4, "act": False}
    assert entry.created_at is not None
    with pytest.raises(UsageError, match="nonsense"):
        cache.clear({entry.key, "nonsense"})
    assert cache.clear({entry.key}) == (entry,)
    assert [left.path for left in cache.entries()] == [kept]


def test_other_folders_are_not_ours(cache: ArtifactCache, model: Path) -> None:
    """A cache folder that holds other things lists and clears none of them."""
    (cache.root / "photos").mkdir(parents=True)
    (cache.root / "photos" / "a.png").write_text("a")
    cache.get_or_make("gptq", model, {}, Maker())
    assert len(cache.clear()) == 1
    assert (cache.root / "photos" / "a.png").exists()


def test_not_a_model(cache: ArtifactCache, tmp_path: Path) -> None:
    """A folder without model files is refused by name."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="empty"):
        cache.get_or_make("gptq", tmp_path / "empty", {}, Maker())


def test_unusable_root_is_a_store_error(tmp_path: Path, model: Path) -> None:
    """A cache path that is a file, and a full disk, say which folder and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--cache-dir"):
        ArtifactCache(tmp_path / "file").get_or_make("gptq", model, {}, Maker())

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        ArtifactCache(tmp_path / "cache").get_or_make("gptq", model, {}, full)


def test_errors_of_make_stay_its_own(cache: ArtifactCache, model: Path) -> None:
    """A network or model error inside ``make`` is not blamed on the cache."""

    def refuse(folder: Path) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "hub is away")

    with pytest.raises(ConnectionRefusedError):
        cache.get_or_make("gptq", model, {}, refuse)


_MAKE_SLOWLY = """
import json, sys, time
from pathlib import Path
from llmfit.quantize.cache import ArtifactCache

def make(folder):
    (folder / "half").write_text("half")
    Path(sys.argv[3]).touch()
    time.sleep(float(sys.argv[4]))

made = ArtifactCache(Path(sys.argv[1])).get_or_make("gptq", Path(sys.argv[2]), {}, make)
print(json.dumps([str(made.path), made.make_s]))
"""


def _start(cache: ArtifactCache, model: Path, started: Path, seconds: float) -> subprocess.Popen:
    arguments = [str(cache.root), str(model), str(started), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", _MAKE_SLOWLY, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_two_processes_make_once(cache: ArtifactCache, model: Path, tmp_path: Path) -> None:
    """Of two processes that want the same artifact, one makes it and both get it."""
    marks = [tmp_path / "first", tmp_path / "second"]
    first = _start(cache, model, marks[0], 1.5)
    _wait_for(marks[0])
    second = _start(cache, model, marks[1], 0)
    outcomes = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][1] is not None and outcomes[1][1] is None
    assert not marks[1].exists()


def test_killed_maker_is_swept_up(cache: ArtifactCache, model: Path, tmp_path: Path) -> None:
    """A half-made folder stays while its maker lives, is never served, and goes after a kill."""
    mark = tmp_path / "started"
    process = _start(cache, model, mark, 60)
    _wait_for(mark)
    cache.get_or_make("awq", model, {}, Maker())  # another key: sweeps, spares the live maker
    assert len(list(cache.root.glob(".making-*"))) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cache.get_or_make("gptq", model, {}, Maker()).make_s is not None
    assert list(cache.root.glob(".making-*")) == []


def test_a_chat_template_is_part_of_the_model(cache: ArtifactCache, model: Path) -> None:
    """A GGUF file carries it: another one makes another file."""
    maker = Maker()
    template = model / "chat_template.jinja"
    template.write_text("one")
    first = cache.get_or_make("gguf", model, {}, maker).path
    template.write_text("two")
    assert cache.get_or_make("gguf", model, {}, maker).path != first


def test_the_beginning_of_a_key_stands_for_it(cache: ArtifactCache, model: Path) -> None:
    """A narrow terminal breaks keys; one that begins several is refused, and nothing removed."""
    for bits in (4, 8):
        cache.get_or_make("gptq", model, {"bits": bits}, Maker())
    first, second = (entry.key for entry in cache.entries())
    with pytest.raises(UsageError, match="2 cached artifacts begin with 'gptq-'"):
        cache.clear(["gptq-"])
    with pytest.raises(UsageError, match="no cached artifact ''"):
        cache.clear([""])
    assert [entry.key for entry in cache.clear([first[:-1]])] == [first]
    assert [entry.key for entry in cache.entries()] == [second]
