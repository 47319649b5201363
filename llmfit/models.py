"""From what the user typed to facts about a model: config and file headers, never a tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.files import expanded
from llmfit.foreign.code import PICKLED_WEIGHTS
from llmfit.foreign.facts import (
    LARGEST_NUMBER,
    class_name,
    model_type,
    require_countable,
    word,
)
from llmfit.foreign.files import require_no_adapter, safetensors_shapes, weight_files
from llmfit.foreign.json import read_json
from llmfit.hub import WEIGHT_SUFFIXES, cached_folder, hub_files, hub_folder, hub_reachable
from llmfit.planning import catalogue
from llmfit.planning.architectures import (
    context_limit,
    language_part,
    require_shape,
    widest_attention,
)
from llmfit.quantization import (
    OLD_FILES,
    Facts,
    in_config,
    method,
    stored_quantization,
)
from llmfit.records import ModelSpec, Source
from llmfit.shape import ModelShape

EMBEDDED_NAME = "llmfit-embedded"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
UNTOLD_CONTEXT_TOKENS = 2**20
"""Stands for the longest context of models that have none, such as Mamba."""
_WEIGHT_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def data_path(name: str) -> Path:
    """Path of a file or folder of the package's own data."""
    return Path(str(files("llmfit") / "data" / name))


def resolve(model: str | None, weights: bool = True) -> ModelSpec:
    """The spec of a folder, of a hub id (its config is fetched), or of the embedded model (None).

    Names of the embedded catalogue are understood too: without ``weights`` (a plan needs none) its
    facts are taken before the hub is asked, and with them where the hub does not give the model,
    which a note of the shape says. ``source`` is then "catalogue". Raises ModelNotFound where
    there is no such folder, config, hub or catalogue entry, and ModelLoadError for a config that
    is damaged or not of a causal language model.
    """
    if model is None or model == EMBEDDED_NAME:
        return read_spec(data_path("embedded"), name=EMBEDDED_NAME, source="embedded")
    if not model:
        raise ModelNotFound(
            "the model's name is empty.",
            hint="a folder with config.json, or a hub id like org/name",
        )
    folder = expanded(model)
    if folder.is_dir():
        return read_spec(folder, name=_display_name(model, folder), source="local")
    if folder.exists():
        raise ModelNotFound(
            f"{model} is a file; llmfit takes a model's folder or hub id.",
            hint="--checkpoint gguf=FILE for a ready GGUF, with the model's folder as MODEL",
        )
    entry = catalogue.find(model)
    if entry is not None and not weights:
        return _spec_from_catalogue(entry)
    if entry is None and (not _HUB_ID.fullmatch(model) or model.startswith((".", "~"))):
        raise ModelNotFound(
            f"no folder {model!r}.", hint="a folder with config.json, or a hub id like org/name"
        )
    try:
        # A short name is the catalogue's own; an older hub id is still the hub's to redirect.
        return _spec_from_hub(model if entry is None or "/" in model else entry.name)
    except ModelNotFound as exc:
        if entry is None:
            raise _with_near_names(exc, model) from exc
        return _spec_from_catalogue(entry, why=exc.message)


def _with_near_names(error: ModelNotFound, model: str) -> ModelNotFound:
    """The hub's error with what the catalogue has of that name, where it has any."""
    near = catalogue.nearest(model)
    if not near:
        return error
    known = f"a name known offline: {', '.join(near)}"
    return ModelNotFound(error.message, hint=f"{error.hint}; or {known}" if error.hint else known)


def _spec_from_catalogue(entry: catalogue.CatalogueEntry, *, why: str | None = None) -> ModelSpec:
    """The spec by the catalogue's facts; ``why`` the hub did not give the model."""
    config = dict(entry.config)
    spec = spec_from_config(
        config,
        name=entry.name,
        path=entry.name,
        source="catalogue",
        parameters=None,
        quantization=in_config(config),
    )
    if why is None or spec.shape is None:
        return spec
    note = f"{why} Facts are those of the embedded catalogue."
    return replace(spec, shape=replace(spec.shape, notes=(*spec.shape.notes, note)))


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of a spec's model, or the catalogue's facts in its form.

    transformers' ``AutoConfig.for_model(**config)`` takes it. A hub model's is fetched where it
    is not in the cache. Raises ModelNotFound or ModelLoadError.
    """
    if spec.source == "catalogue":
        entry = catalogue.find(spec.path)
        if entry is None:
            raise ModelNotFound(
                f"the embedded catalogue has no {spec.path}.",
                hint="a folder with config.json, or a hub id",
            )
        return dict(entry.config)
    if spec.source == "hub":
        return read_json(hub_files(spec.path, ("config.json",))["config.json"])
    return read_json(Path(spec.path) / "config.json")


def read_spec(folder: Path, *, name: str, source: Source) -> ModelSpec:
    """The spec of a local folder. Raises ModelNotFound or ModelLoadError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFound(
            f"{folder} has no config.json.",
            hint="the folder that holds config.json and *.safetensors of the model",
        )
    place = str(folder.resolve())
    if any("\ud800" <= char <= "\udfff" for char in place):  # Python's sign for other bytes
        raise ModelNotFound(
            f"the path {place!r} is not UTF-8, which records are written in.",
            hint="another name for that folder",
        )
    require_no_adapter(folder)
    with _naming(name):
        quantization = stored_quantization(folder)
    return spec_from_config(
        read_json(path),
        name=name,
        path=place,
        source=source,
        parameters=count_parameters(folder),
        quantization=quantization,
    )


def local_folder(
    spec: ModelSpec, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> ModelSpec:
    """The spec with its files on disk: downloads a hub model once. Raises ModelNotFound.

    Pickled weights are fetched only where they are allowed and there are no others, Python files
    only where they are trusted. A model of the catalogue has no files: the hub did not give it
    when its spec was made. The hub client draws its own progress bars on stderr.
    """
    if spec.source == "catalogue":
        raise ModelNotFound(
            f"the weights of {spec.name} are not here; only its facts are known offline.",
            hint=f"llmfit plan {spec.name}, or --weights synthetic",
        )
    if spec.source != "hub":
        return spec
    wanted = [*_WEIGHT_FILES, *(["*.py"] if trust_remote_code else [])]
    folder = hub_folder(spec.path, wanted)
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = hub_folder(spec.path, [*wanted, *PICKLED_WEIGHTS, "*.bin.index.json"])
    return read_spec(folder, name=spec.name, source="local")


def why_no_weights(spec: ModelSpec) -> str | None:
    """Why a model's weights are neither here nor to be had now; None where they are.

    Asks the hub only where they are not on disk.
    """
    if spec.source == "catalogue":
        return f"the weights of {spec.name} are not here, and the hub did not give them"
    if spec.source == "hub":
        if cached_folder(spec.path, _WEIGHT_FILES) is not None or hub_reachable():
            return None
        return f"the weights of {spec.name} are not downloaded, and the hub was not reached"
    folder = Path(spec.path)
    if any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir()):
        return None
    return f"{folder} holds no weights, only its config"


def _display_name(typed: str, folder: Path) -> str:
    return folder.resolve().name or typed


def spec_from_config(
    config: dict[str, Any],
    *,
    name: str,
    path: str,
    source: Source,
    parameters: int | None,
    quantization: Facts | None,
) -> ModelSpec:
    """Facts of a config.json, where its architecture's own names are those of the shape.

    ``parameters`` are those of the weights' headers; the shape's where there are none, or packed
    ones. Raises ModelLoadError naming the key that is missing or wrong.
    """
    with _naming(name):
        require_countable(config)
        shape = require_shape(config)
        limit = context_limit(config)
        architecture, family = class_name(config) or "unknown", model_type(config) or "unknown"
        dtype = _dtype(config, language_part(config))
        stored = method(quantization) if quantization else None
    if limit is None:
        note = f"its config tells no longest context; taken for {UNTOLD_CONTEXT_TOKENS} tokens"
        shape = replace(shape, notes=(*shape.notes, note))
    text = language_part(config)
    attention = widest_attention(shape)
    return ModelSpec(
        name=name,
        path=path,
        source=source,
        architecture=architecture,
        model_type=family,
        hidden_size=shape.hidden_size,
        intermediate_size=_width(text, shape),
        num_hidden_layers=len(shape.layers),
        num_attention_heads=attention.heads if attention else 0,
        num_key_value_heads=attention.kv_heads if attention else 0,
        head_dim=attention.key_dim if attention else 0,
        vocab_size=shape.vocab_size,
        max_position_embeddings=limit or UNTOLD_CONTEXT_TOKENS,
        tie_word_embeddings=shape.tied,
        parameters=shape.parameters if parameters is None or quantization else parameters,
        dtype=dtype,
        quantization=stored,
        attention_bias=bool(text.get("attention_bias", False))
        or str(text.get("model_type")) == "qwen2",  # its biases are in code, not in the config
        shape=shape,
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the model's name before an error about its config.json."""
    try:
        yield
    except ModelLoadError as exc:
        raise ModelLoadError(f"{name}: {exc.message}", hint=exc.hint) from exc


def _width(text: Mapping[str, Any], shape: ModelShape) -> int:
    """The MLP's width as the config tells it, else the widest of any layer; 0 without an MLP."""
    told = text.get("intermediate_size")
    if type(told) is int and 0 < told <= LARGEST_NUMBER:
        return told
    matrices = (matrix for kind in shape.kinds for matrix in kind.matrices)
    return max((each.columns for each in matrices if each.name.startswith("ffn_down")), default=0)


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    for part in (config, text):
        value = part.get("dtype") or part.get("torch_dtype")
        if isinstance(value, str):
            return word("torch_dtype", value)
    return None


def count_parameters(folder: Path) -> int | None:
    """Number of values in all tensors of the folder's safetensors; None where there are none.

    Reads headers only. A tied output head that is stored although tied is counted as stored.
    """
    if not any(folder.glob("*.safetensors")):
        return None
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the folder's safetensors, from their headers.

    Raises ModelLoadError for a file that is none, or an index that names files elsewhere.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in weight_files(folder):
        shapes.update(safetensors_shapes(shard))
    return shapes


def _spec_from_hub(model: str) -> ModelSpec:
    """The spec of a hub model by its config, and what old tools put beside it."""
    files = hub_files(model, ("config.json", *OLD_FILES))
    config = read_json(files["config.json"])
    with _naming(model):
        said = in_config(config)
    for name, read in OLD_FILES.items():
        if name in files:
            said = said or read(read_json(files[name]))
    return spec_from_config(
        config, name=model, path=model, source="hub", parameters=None, quantization=said
    )
