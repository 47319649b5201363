"""Backend ids to backends, in the order of the table; after them those of other packages.

A package adds a format by an entry point of the group ``llmfit.backends``, whose name is the id and
whose object is the ``Backend``'s class.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from llmfit.backends.base import Backend
from llmfit.errors import UsageError, first_line
from llmfit.records import ModelSpec

# id -> "module:class"; imported when asked for, so that listing ids costs nothing.
BACKENDS: dict[str, str] = {
    "bf16": "llmfit.backends.bf16:Bf16",
    "sdpa": "llmfit.backends.sdpa:Sdpa",
    "compiled": "llmfit.backends.compiled:Compiled",
    "int8": "llmfit.backends.int8:Int8",
    "nf4": "llmfit.backends.nf4:Nf4",
    "gptq": "llmfit.backends.gptq:Gptq",
    "awq": "llmfit.backends.awq:Awq",
    "gguf": "llmfit.backends.gguf:Gguf",
    "int8wo": "llmfit.backends.int8wo:Int8Wo",
    "int4wo": "llmfit.backends.int4wo:Int4Wo",
    "fp8": "llmfit.backends.fp8:Fp8",
    "hqq": "llmfit.backends.hqq:Hqq",
    "onnx": "llmfit.backends.onnx:Onnx",
    "gguf-gpu": "llmfit.backends.gguf_gpu:GgufGpu",
    "vllm": "llmfit.backends.vllm:Vllm",
    "stored": "llmfit.backends.stored:Stored",
    "offload": "llmfit.backends.offload:Offload",
}
ON_REQUEST = ("int8wo", "int4wo", "fp8", "hqq", "onnx", "gguf-gpu", "vllm")
"""Rows of a comparison that asks for them, or for all."""
ALL = "all"
# For models stored quantised in a format that no other row loads.
_ONLY_STORED = "stored"
# For models that fit in no format: a comparison adds it then.
_LAST_RESORT = "offload"


def backend_ids() -> tuple[str, ...]:
    """All ids: the table's in its order, then those that other packages add."""
    return (*BACKENDS, *sorted(_added()))


def added_packages() -> dict[str, str]:
    """Name and version of each package that adds a backend."""
    found = (point.dist for point in _added().values())
    return {dist.name: dist.version for dist in found if dist is not None}


def _added() -> dict[str, EntryPoint]:
    """Entry points of other packages by id; none can stand in for one of the table's."""
    points = entry_points(group="llmfit.backends")
    return {point.name: point for point in points if point.name not in BACKENDS}


def default_backends(model: ModelSpec) -> tuple[str, ...]:
    """The rows of a comparison that names none.

    ``stored`` comes first for a model stored quantised in a format that no other row loads, and
    is left out for all others; the other rows then say why they do not run. ``offload`` is added by
    the comparison where nothing fits.
    """
    apart = (*ON_REQUEST, _ONLY_STORED, _LAST_RESORT)
    common = tuple(name for name in BACKENDS if name not in apart)
    method = model.quantization
    if method is None or any(method in get_backend(name).loads_quantized for name in common):
        return common
    return (_ONLY_STORED, *common)


def chosen_backends(asked: Sequence[str] | None, model: ModelSpec) -> tuple[str, ...]:
    """The rows that are asked for: by name, None for the default ones, ``all`` for all of them.

    Raises UsageError for unknown or repeated ids, or none.
    """
    if asked is None:
        return default_backends(model)
    if list(asked) == [ALL]:
        return (*default_backends(model), *ON_REQUEST)
    check_backends(asked)
    return tuple(asked)


def check_backends(backends: Sequence[str]) -> None:
    """Raise UsageError for unknown or repeated ids, or none; ``all`` stands for all of them."""
    if not backends:
        raise UsageError("no backend is named.", hint="llmfit backends")
    if isinstance(backends, str):
        raise UsageError(f"backends are a list of ids, not a text: [{backends!r}].")
    if list(backends) == [ALL]:
        return
    for backend in backends:
        get_backend(backend)
        if list(backends).count(backend) > 1:
            raise UsageError(f"backend {backend!r} is named twice.")


def split_id(spec: str) -> tuple[str, str | None]:
    """Split ``id`` or ``id:variant``."""
    name, colon, variant = spec.partition(":")
    return name, (variant if colon else None)


def get_backend(spec: str) -> Backend:
    """The backend of ``id`` or ``id:variant``. Raises UsageError naming the known ids."""
    name, variant = split_id(spec)
    backend = _class(name)()
    if not isinstance(backend, Backend):
        raise UsageError(f"what another package adds as {name!r} is no llmfit backend.")
    if variant is not None and variant not in backend.variants:
        if not backend.variants:
            raise UsageError(
                f"{name} has no type {variant!r}, nor any other.", hint=f"{name} alone"
            )
        known = ", ".join(sorted(backend.variants))
        raise UsageError(f"{name} has no type {variant!r}; known are: {known}.")
    return backend


def _class(name: str) -> type[object]:
    if name in BACKENDS:
        module, _, attribute = BACKENDS[name].partition(":")
        found: type[object] = getattr(import_module(module), attribute)
        return found
    added = _added()
    if name not in added:
        known = ", ".join((*BACKENDS, *sorted(added)))
        raise UsageError(f"unknown backend {name!r}; known are {known}.", hint="llmfit backends")
    try:
        loaded: type[object] = added[name].load()
    except (ImportError, AttributeError) as exc:
        raise UsageError(
            f"the backend {name!r} of another package cannot be loaded: {first_line(exc)}.",
            hint="install that package again, or without it",
        ) from exc
    return loaded
