"""A llama.cpp checkout's own converter, for models that llmfit's does not know.

    python -m llmfit.quantize.gguf_checkout DIR/convert_hf_to_gguf.py ARGUMENTS…

The converter runs in a process of its own, under the same Python, with the checkout's gguf
package before the installed one. It ends when its stdin closes, so it never outlives the parent.
"""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from llmfit.child import end_with_parent, ending, environment
from llmfit.errors import QuantizationError, UsageError
from llmfit.files import expanded, file_hash

_SCRIPT = "convert_hf_to_gguf.py"
_LAST_LINES = 5


@dataclass(frozen=True, slots=True)
class Checkout:
    """A llama.cpp checkout that was seen to have a converter."""

    folder: Path

    @classmethod
    def at(cls, folder: str) -> Checkout:
        """The checkout in ``folder``. Raises UsageError where there is no converter."""
        path = expanded(folder).absolute()
        if not (path / _SCRIPT).is_file():
            found = "holds no" if path.is_dir() else "is no folder with a"
            raise UsageError(
                f"{path} {found} {_SCRIPT}.",
                hint="git clone https://github.com/ggml-org/llama.cpp, then --llama-cpp llama.cpp",
            )
        return cls(path)

    def content_hash(self) -> str:
        """BLAKE2b-160 over names and contents of the converter's source files."""
        files = [self.folder / _SCRIPT]
        for part in ("conversion", "gguf-py/gguf"):
            files += sorted((self.folder / part).rglob("*.py"))
        total = hashlib.blake2b(digest_size=20)
        for file in files:
            name = file.relative_to(self.folder).as_posix()
            total.update(f"{name}\0{file_hash(file)}\n".encode())
        return total.hexdigest()

    def convert(self, model: Path, target: Path, *, dtype: str) -> None:
        """Write the model folder to the GGUF file ``target`` with matrices of ``dtype``.

        Raises QuantizationError with the last lines that the converter said.
        """
        command = [sys.executable, "-m", __name__, str(self.folder / _SCRIPT)]
        command += [str(model.absolute()), "--outfile", str(target), "--outtype", dtype]
        # Beside the target, it goes with that one's folder when this process is killed.
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=target.parent) as scratch:
            code, said = _run(command, scratch, environment(str(self.folder / "gguf-py")))
        if code == 0 and target.is_file():
            return
        how = "wrote no file" if code == 0 else f"ended with {ending(code)}"
        raise QuantizationError(
            f"the converter of the llama.cpp checkout {self.folder} {how} for {model}: {said}",
            hint="--checkpoint gguf=FILE with a GGUF file of this model made elsewhere",
        )


def _run(command: list[str], cwd: str, variables: dict[str, str]) -> tuple[int, str]:
    """The command's return code, and the last lines that it said."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=cwd,
        env=variables,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        said = deque((line.strip() for line in child.stdout if line.strip()), _LAST_LINES)
        code = child.wait()
    finally:
        child.kill()
        child.stdin.close()
        child.wait()
    return code, " | ".join(said) or "(no output)"


def main() -> None:
    """The child: run the script named first as the main program."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(script).parent))  # as if Python had been given the script
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
