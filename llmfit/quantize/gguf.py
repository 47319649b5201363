"""A model folder as a quantised GGUF file, made once and cached.

    folder ─► convert (16 or 32 bits, lossless) ─► llama.cpp's quantiser ─► model.gguf
              our converter, or a llama.cpp checkout's

A type such as Q4_K_M is a mixture chosen by llama.cpp per tensor, and a tensor whose rows the
type's block does not divide gets another type: ``gguf_types`` tells what became of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from llmfit.errors import QuantizationError
from llmfit.quantize.cache import Artifact, ArtifactCache, Setting
from llmfit.quantize.gguf_checkout import Checkout
from llmfit.quantize.gguf_convert import FLOAT_FILE_TYPES, FloatType, convert, stored_dtype

FILE_TYPES: Mapping[str, int] = {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_0": 2,
    "q4_1": 3,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "q5_0": 8,
    "q5_1": 9,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "q8_0": 7,
    **FLOAT_FILE_TYPES,
}
"""The types that need no importance matrix. Source: llama.cpp's enum llama_ftype."""

CONVERTER_VERSION = 3
"""Part of the cache's key: raised when the same model would give another file."""

_FILE = "model.gguf"
_PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def make_gguf(
    folder: Path,
    file_type: str,
    *,
    cache: ArtifactCache,
    threads: int,
    progress: Callable[[str, int, int], None],
    checkout: Checkout | None = None,
) -> Artifact:
    """The GGUF file of the model ``folder`` in ``file_type``.

    With ``checkout`` its converter is used, for every architecture. Raises ModelLoadError for a
    model that cannot be converted, QuantizationError where llama.cpp refuses.
    """

    def write(target: Path, dtype: FloatType) -> None:
        if checkout is None:
            convert(folder, target, dtype=dtype, progress=progress)
            return
        progress("convert", 0, 0)
        checkout.convert(folder, target, dtype=dtype)

    def make(target: Path) -> None:
        if file_type in FLOAT_FILE_TYPES:
            write(target / _FILE, file_type)  # type: ignore[arg-type]
            return
        whole = target / "unquantised.gguf"
        write(whole, stored_dtype(folder))
        quantize(whole, target / _FILE, file_type, threads=threads, progress=progress)
        whole.unlink()

    settings: dict[str, Setting] = {"type": file_type}
    if file_type not in FLOAT_FILE_TYPES:  # it chooses each tensor's type, and rounds
        settings["quantizer"] = f"llama-cpp-python {version('llama-cpp-python')}"
    if checkout is None:
        settings["converter"] = CONVERTER_VERSION
    else:
        settings["llama_cpp"] = checkout.content_hash()
    artifact = cache.get_or_make("gguf", folder, settings, make)
    return replace(artifact, path=artifact.path / _FILE)


def quantize(
    source: Path,
    target: Path,
    file_type: str,
    *,
    threads: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Quantise a GGUF file by llama.cpp. Raises QuantizationError with llama.cpp's own words."""
    import ctypes

    import llama_cpp

    from llmfit.decode.llama_log import llama_log

    def show(line: str) -> None:
        counted = _PROGRESS.match(line)
        if counted:
            progress("quantize", int(counted[1]), int(counted[2]))

    log = llama_log()
    log.forget()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.nthread = threads
    with log.listening(show):
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
    if code != 0:
        raise QuantizationError(
            f"llama.cpp cannot quantise {source} to {file_type.upper()}: {log.complaints()}.",
            hint="--backends gguf:f16",
        )
