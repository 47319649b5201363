"""A model folder as a quantised GGUF file, made once and cached.

    folder ─► convert (16 or 32 bits, lossless) ─► llama.cpp's quantiser ─► model.gguf

A type such as Q4_K_M is a mixture chosen by llama.cpp per tensor, and a tensor whose rows the
type's block does not divide gets another type. ``read_types`` tells from the finished file what
became of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmfit.errors import ModelLoadError, QuantizationError
from llmfit.quantize.cache import ArtifactCache, Setting
from llmfit.quantize.gguf_convert import (
    FLOAT_FILE_TYPES,
    NOTES_KEY,
    convert,
    stored_dtype,
)

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

DEFAULT_TYPE = "q4_k_m"
CONVERTER_VERSION = 1
"""Part of the cache's key: raised when the same model would give another file."""

_FILE = "model.gguf"
_FLOATS = ("F32", "F16", "BF16", "F64")
_PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTypes:
    """What a GGUF file's tensors are stored as."""

    parameters: Mapping[str, int]
    """Parameters by type, e.g. ``Q4_K``; most first."""
    weights_bytes: int
    widths: tuple[int, ...]
    """Row lengths of the matrices, ascending."""
    notes: tuple[str, ...]
    """What the converter had to say, where the file is llmfit's own."""

    @property
    def quantized_share(self) -> float:
        """Share of the parameters in block-quantised types, 0…1."""
        total = sum(self.parameters.values())
        return 1 - sum(self.parameters.get(kind, 0) for kind in _FLOATS) / total

    def linear(self) -> str:
        """The types of at least a tenth of the parameters each, e.g. ``Q4_K/Q6_K``."""
        total = sum(self.parameters.values())
        main = [kind for kind, count in self.parameters.items() if count >= 0.1 * total]
        return "/".join(main)

    def shares(self) -> str:
        """All types with their shares, e.g. ``Q5_0 54 %, F16 40 %``."""
        total = sum(self.parameters.values())
        return ", ".join(f"{k} {100 * n / total:.3g} %" for k, n in self.parameters.items())


def make_gguf(
    folder: Path,
    file_type: str,
    *,
    cache: ArtifactCache,
    threads: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Path, float | None]:
    """The GGUF file of the model ``folder`` in ``file_type``, and the seconds that making it took.

    None seconds mean that it was cached. Raises ModelLoadError for a model that cannot be
    converted, QuantizationError where llama.cpp refuses.
    """

    def make(target: Path) -> None:
        if file_type in FLOAT_FILE_TYPES:
            convert(folder, target / _FILE, dtype=file_type, progress=progress)  # type: ignore[arg-type]
            return
        whole = target / "unquantised.gguf"
        convert(folder, whole, dtype=stored_dtype(folder), progress=progress)
        quantize(whole, target / _FILE, file_type, threads=threads, progress=progress)
        whole.unlink()

    settings: dict[str, Setting] = {"type": file_type, "converter": CONVERTER_VERSION}
    artifact, seconds = cache.get_or_make("gguf", folder, settings, make)
    return artifact / _FILE, seconds


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


def read_types(file: Path) -> GgufTypes:
    """Read the tensors' types from a GGUF file. Raises ModelLoadError for a broken file."""
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as exc:
        raise ModelLoadError(f"{file} cannot be read as GGUF: {exc}.") from exc
    if not reader.tensors:
        raise ModelLoadError(f"{file} holds no tensors, only a vocabulary.")
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        counts[kind] = counts.get(kind, 0) + int(tensor.n_elements)
    notes = reader.get_field(NOTES_KEY)
    return GgufTypes(
        parameters=dict(sorted(counts.items(), key=lambda item: -item[1])),
        weights_bytes=sum(int(tensor.n_bytes) for tensor in reader.tensors),
        widths=tuple(sorted({int(t.shape[0]) for t in reader.tensors if len(t.shape) > 1})),
        notes=tuple(notes.contents()) if notes is not None else (),
    )


def fallback_note(file_type: str, types: GgufTypes) -> str | None:
    """What llama.cpp stored instead where ``file_type``'s blocks do not divide a row, or None.

    Source: llama.cpp's src/llama-quant.cpp: K-quants and IQ4_XS have blocks of 256, the other
    quantised types of 32; a tensor that does not fit takes a type with blocks of 32, or F16.
    """
    if file_type in FLOAT_FILE_TYPES:
        return None
    name = file_type.upper()
    wide = "_K" in name or name == "IQ4_XS"
    block = 256 if wide else 32
    odd = [width for width in types.widths if width % block]
    if not odd:
        return None
    total = sum(types.parameters.values())
    fitting = sum(n for kind, n in types.parameters.items() if kind.endswith("_K") or kind == name)
    held = f"{100 * fitting / total:.3g} % of parameters in {'K-quants' if '_K' in name else name}"
    widths = " and ".join(map(str, odd))
    reason = f"row length {widths} is" if len(odd) == 1 else f"row lengths {widths} are"
    return f"{name}: {held} ({reason} not divisible by {block}): {types.shares()}"
