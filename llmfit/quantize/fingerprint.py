"""A model's identity by content: the hash of the files that a quantised artifact is made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmfit.errors import ModelNotFound
from llmfit.files import file_hash, write_atomically
from llmfit.quantization import OLD_FILES

# What the weights, the architecture and the tokenizer are read from; a README or a licence
# beside them changes no artifact.
_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "*.gguf",
    "*.pt",
    "*.pth",
    "gptq_model*.bin",
    "*.py",
    "*.jinja",
    "tokenizer*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    *OLD_FILES,
)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells that a file is still the one that was hashed."""

    size: int
    mtime_ns: int
    inode: int


class FileHashes:
    """Content hashes of files, remembered in one JSON file by path, size, time and inode.

    With the memory warm, hashing a 16 GB model reads no weights. A memory that cannot be read
    or written only costs the time to hash again.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory

    def model(self, model_path: Path) -> str:
        """Hash of a model folder (or of a single file): names and full contents.

        Raises ModelNotFound when there is nothing to hash.
        """
        return self._hash(_model_files(model_path))

    def everything(self, path: Path) -> str:
        """Hash of a file, or of all files of a folder and its subfolders, by names and contents.

        Raises ModelNotFound when there is nothing to hash.
        """
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        if not found:
            raise ModelNotFound(f"{path} is not there, or holds no file.")
        return self._hash(found)

    def _hash(self, files: list[Path]) -> str:
        known = self._read()
        fresh: dict[str, dict[str, object]] = {}
        total = hashlib.blake2b(digest_size=20)
        for file in files:
            digest = _remembered(known, file)
            if digest is None:
                # The stamp is taken first: a file changed while it is read is hashed again.
                stamp = _stamp(file)
                digest = file_hash(file)
                fresh[str(file.resolve())] = {**asdict(stamp), "digest": digest}
            total.update(f"{file.name}\0{digest}\n".encode())
        if fresh:
            self._write(fresh)
        return total.hexdigest()

    def _read(self) -> dict[str, dict[str, object]]:
        try:
            known = json.loads(self._memory.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict):
            return {}
        return {path: entry for path, entry in known.items() if isinstance(entry, dict)}

    def _write(self, fresh: dict[str, dict[str, object]]) -> None:
        # Read again, so that what another process wrote meanwhile is kept.
        known = {path: entry for path, entry in self._read().items() if Path(path).exists()}
        # A read-only cache can still serve what it holds; only the time to hash is lost.
        with contextlib.suppress(OSError):
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._memory, json.dumps(known | fresh, indent=0))


def _model_files(model_path: Path) -> list[Path]:
    if model_path.is_file():
        return [model_path]
    files = {file for pattern in _PATTERNS for file in model_path.glob(pattern) if file.is_file()}
    if not files:
        raise ModelNotFound(
            f"{model_path} holds no model file (config.json, *.safetensors).",
            hint="give the folder that holds config.json",
        )
    return sorted(files)


def _stamp(file: Path) -> _Stamp:
    status = file.stat()
    return _Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def _remembered(known: dict[str, dict[str, object]], file: Path) -> str | None:
    entry = known.get(str(file.resolve()), {})
    digest = entry.get("digest")
    same = all(entry.get(name) == value for name, value in asdict(_stamp(file)).items())
    return digest if same and isinstance(digest, str) else None
