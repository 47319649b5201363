"""JSON from strangers: what is usual passes, what is not is a ModelLoadError naming the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmfit.errors import ModelLoadError
from llmfit.foreign import json as foreign_json
from llmfit.foreign.json import DEEPEST, parse_object, read_json, shortened


def test_what_transformers_writes_and_reads_passes(tmp_path: Path) -> None:
    """Infinity, int(1e30), the last of equal keys, pairs of surrogates, deep enough nesting."""
    file = tmp_path / "config.json"
    nested = '{"a":' * (DEEPEST - 1) + "{}" + "}" * (DEEPEST - 1)
    text = (
        '{"limit": [0.0, Infinity], "model_max_length": 1000000000000000019884624838656, "n": 1,'
        f' "n": 2, "smile": "\\ud83d\\ude00", "é": {nested[5:-1]}}}'
    )
    file.write_text(text, encoding="utf-8")
    found = read_json(file)
    assert found == json.loads(text)
    assert found["n"] == 2 and found["smile"] == "😀"
    link = tmp_path / "link.json"  # a hub snapshot is made of links
    link.symlink_to(file)
    assert read_json(link) == found


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not readable JSON"),
    "cut off": (b'{"a": 1', "not readable JSON"),
    "a list": (b"[1]", "holds a list, not a JSON object"),
    "a number": (b"3", "holds a int"),
    "null": (b"null", "holds a NoneType"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "Latin-1": ('{"é": 1}'.encode("latin-1"), "not UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', "not readable JSON"),
    "half a character": (b'{"a": "\\ud83d"}', "half a character"),
    "half a character as a key": (b'{"\\udc00": 1}', "half a character"),
    "5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    "65 digits": (b'{"a": ' + b"9" * 65 + b"}", "a number of 65 digits"),
    "a little too deep": (b'{"a":' * (DEEPEST + 1) + b"{}" + b"}" * (DEEPEST + 1), "nested more"),
    "lists too deep": (b'{"a":' + b"[" * 80 + b"]" * 80 + b"}", "nested more"),
    "a million deep": (b'{"a":' + b"[" * 1_000_000, "nested more"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    """Whatever json, the decoder or the walk says of it."""
    content, said = BROKEN[name]
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"config\.json") as refused:
        read_json(file)
    assert said in str(refused.value)


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    """A folder, a pipe that nobody writes to, an endless device behind a link, nothing at all."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "zeros"):
        with pytest.raises(ModelLoadError, match=f"{name} is no regular file"):
            read_json(tmp_path / name)
    with pytest.raises(ModelLoadError, match="gone cannot be read: No such file"):
        read_json(tmp_path / "gone")


_LIMITED = """
import resource, sys
from pathlib import Path
from llmfit.errors import ModelLoadError
from llmfit.foreign.json import LARGEST_TABLE_BYTES, read_json
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
try:
    read_json(Path(sys.argv[1]), largest=LARGEST_TABLE_BYTES)
except ModelLoadError as exc:
    print(exc)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit on addresses is Linux's")
@pytest.mark.parametrize(
    ("piece", "said"), [(b"[],", "values"), (b" " * 3, "bytes")], ids=["values", "bytes"]
)
def test_nothing_is_made_before_its_size_is_checked(
    piece: bytes, said: str, tmp_path: Path
) -> None:
    """120 MB of empty lists would take 3.2 GB, and 8 GB of spaces themselves: 600 MB are enough."""
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as stream:
        stream.write(b'{"a": [' + piece * 40_000_000)
        if piece.isspace():
            stream.truncate(8 * 10**9)  # a hole: it takes no room on the disk
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(file), str(600 * 2**20)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "tokenizer.json" in ran.stdout and said in ran.stdout, ran.stderr
    file.unlink()


def test_a_config_may_not_be_as_large_as_a_tokenizer(tmp_path: Path) -> None:
    """17 MB pass as a table and not as a config."""
    file = tmp_path / "some.json"
    file.write_bytes(b'{"a": "' + b"x" * 17 * 2**20 + b'"}')
    with pytest.raises(ModelLoadError, match="more than 16777216 bytes"):
        read_json(file)
    assert read_json(file, largest=foreign_json.LARGEST_TABLE_BYTES)


def test_a_value_is_shown_in_a_line() -> None:
    """However long it is, and without its control characters."""
    for value in ("x" * 10**6, [1] * 10**6, {str(i): i for i in range(10**4)}, 10**60):
        assert len(shortened(value)) < 200
    assert "\x1b" not in shortened("\x1b[31m") and "\u202e" not in shortened("\u202e")
    assert parse_object(b"{}", source="x") == {}
