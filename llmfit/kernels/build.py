"""Compile and load ``cpu.cpp``, once for each CPU and version of PyTorch.

    cpu.cpp ─► C++ compiler ─► cache/kernels/<key>-<content>.so ─► torch.ops.llmfit
               (2 to 3 s)      source, flags, torch, CPU; BLAKE2b of the file

The file is made under another name and renamed, so processes that start together load a whole one.
One that is damaged, or that someone else could have written, is not loaded but made again.
Where there is no compiler, or it refuses, the libraries' own kernels run and the record says why.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs

from llmfit.device.cpu import cpu_flags, cpu_name
from llmfit.files import file_hash
from llmfit.folder_lock import FolderLock
from llmfit.private_code import is_own, private_folder

COMPILERS = ("g++", "clang++", "c++")
"""Tried in this order where ``CXX`` names no program."""
SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = (
    "-O3",
    "-std=c++20",
    "-shared",
    "-fPIC",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-w",
)
_STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
"""PyTorch 2.10's stable interface, whose functions later versions keep."""
_TIME_LIMIT_S = 300
_MAKING = ".making-"
_SAID_CHARACTERS = 300


def install_hint() -> str:
    """The command that installs a C++ compiler on this system."""
    return "xcode-select --install" if platform.system() == "Darwin" else "apt-get install g++"


def find_compiler() -> str | None:
    """The C++ compiler: ``CXX`` where it names a program, else the first of ``COMPILERS`` there is.

    With words beside it, as ``ccache g++``, it names none.
    """
    named = os.environ.get("CXX")
    tried = (*([named] if named else ()), *COMPILERS)
    return next(filter(None, map(shutil.which, tried)), None)


@functools.cache
def why_no_kernels() -> str | None:
    """None once ``torch.ops.llmfit`` can be called; else why it cannot. Tried once a process."""
    folder = platformdirs.user_cache_path("llmfit") / "kernels"
    try:
        _load(folder)
    except (OSError, subprocess.SubprocessError) as exc:
        said = getattr(exc, "stderr", None) or str(exc)
        return " ".join(said.split())[-_SAID_CHARACTERS:]
    _describe_results()
    return None


def _load(folder: Path) -> None:
    """Load the library from ``folder``, made there where it is missing.

    Where nothing can be written there, or it is not the user's alone, it is made anew in each
    process. Raises OSError where there is no compiler, CalledProcessError with its words where it
    refuses.
    """
    import torch

    key, private = _key(), private_folder(folder)
    library = _kept(folder, key) if private else None
    if library is None and private and os.access(folder, os.W_OK):
        library = _made(folder, key)
    if library is not None:
        torch.ops.load_library(library)
        return
    with tempfile.TemporaryDirectory(prefix="llmfit-kernels-") as scratch:
        torch.ops.load_library(_compile(_compiler(), Path(scratch) / f"{key}.so"))


def _made(folder: Path, key: str) -> Path:
    """The library of ``key``, made by one process while others wait; what a killed one left goes.

    Raises OSError, and CalledProcessError.
    """
    with FolderLock(folder, wait_s=_TIME_LIMIT_S) as lock:
        for half in folder.glob(f"{_MAKING}*") if lock.held else ():
            shutil.rmtree(half, ignore_errors=True)
        if (library := _kept(folder, key)) is not None:
            return library
        with tempfile.TemporaryDirectory(dir=folder, prefix=_MAKING) as scratch:
            compiled = _compile(_compiler(), Path(scratch) / f"{key}.so")
            compiled.chmod(0o700)
            library = folder / _name(key, compiled)
            compiled.replace(library)
    return library


def _kept(folder: Path, key: str) -> Path | None:
    """The whole library of ``key`` that the user's own processes left; others are removed."""
    for file in folder.glob(f"{key}-*.so"):
        if is_own(file) and file.name == _name(key, file):
            return file
        with suppress(OSError):  # it stays, and is not loaded
            file.unlink()
    return None


def _name(key: str, file: Path) -> str:
    return f"{key}-{file_hash(file)}.so"


def _compiler() -> str:
    found = find_compiler()
    if found is None:
        raise FileNotFoundError("no C++ compiler on the PATH, nor in CXX")
    return found


def _compile(compiler: str, target: Path) -> Path:
    """The library as ``target``, whose folder gets what the compiler writes meanwhile."""
    import torch

    root = Path(torch.__file__).parent
    subprocess.run(
        [
            compiler,
            *FLAGS,
            _native(),
            _STABLE_ABI,
            f"-I{root / 'include'}",
            str(SOURCE),
            "-o",
            str(target),
            f"-L{root / 'lib'}",
            "-ltorch_cpu",
            "-lc10",
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        env={**os.environ, "TMPDIR": str(target.parent)},
    )
    return target


def _native() -> str:
    """The flag for this machine's own instructions; clang on ARM knows no ``-march=native``."""
    return "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


def _key() -> str:
    """Everything that the compiled file depends on, hashed."""
    import torch

    parts = (
        SOURCE.read_bytes(),
        " ".join((*FLAGS, _native(), _STABLE_ABI)).encode(),
        f"{torch.__version__} {sys.platform} {platform.machine()} {cpu_name()}".encode(),
        " ".join(sorted(cpu_flags())).encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _describe_results() -> None:
    """Tell torch.compile the shapes of what the kernels return, which it needs to trace them."""
    import torch

    def rows_of(name: str, position: int, dim: int) -> None:
        def fake(x: torch.Tensor, *others: object) -> torch.Tensor:
            other = others[position]
            assert isinstance(other, torch.Tensor)
            return x.new_empty((*x.shape[:-1], other.shape[dim]))

        torch.library.register_fake(f"llmfit::{name}")(fake)

    rows_of("linear_bf16", 0, 0)
    rows_of("linear_int8", 0, 0)
    rows_of("linear_4bit_packed", 1, 1)
    rows_of("linear_int4", 1, 1)
    rows_of("rms_norm", 0, 0)

    @torch.library.register_fake("llmfit::linears_bf16")
    def side_by_side(
        x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return x.new_empty((*x.shape[:-1], sum(weight.shape[0] for weight in weights)))

    @torch.library.register_fake("llmfit::attend")
    def attended(
        query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *others: object
    ) -> torch.Tensor:
        batch, heads = query.shape[:2]
        return query.new_empty((batch, 1, heads, values.shape[-1]))
