"""Files: written whole or not at all, and known again by their content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llmfit import files
from llmfit.files import file_hash, pieces_hash, replaced_atomically, write_atomically


def digest(*parts: bytes) -> bytes:
    """BLAKE2b-160."""
    return hashlib.blake2b(b"".join(parts), digest_size=20).digest()


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5300])
def test_hashes_are_those_of_their_definition(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole content, and of the digests of its pieces, whatever the buffer."""
    monkeypatch.setattr(files, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(files, "_BUFFER_BYTES", 300)
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert file_hash(tmp_path / "x") == digest(content).hex()
    pieces = [digest(content[at : at + 1000]) for at in range(0, size, 1000)]
    assert pieces_hash(tmp_path / "x") == digest(*pieces).hex()


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """Also where it had begun; a new file takes its place at once, by a name nobody knows."""
    file = tmp_path / "x"
    write_atomically(file, "old")
    names = []
    with pytest.raises(RuntimeError), replaced_atomically(file) as temporary:
        names.append(temporary.name)
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["x"]
    with replaced_atomically(file) as temporary:
        names.append(temporary.name)
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and len(set(names)) == 2
