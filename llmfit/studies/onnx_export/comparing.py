"""Generated tokens and a graph's file ─► how far the graph's answers are from the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfit.errors import first_line
from llmfit.studies.onnx_export.export import cache_shape, with_flat_cache
from llmfit.studies.onnx_export.runners import Generated, OnnxRunner, Runner

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """Logits against those that they should be."""

    error: float
    """The largest difference of all."""
    largest: float
    """The largest logit of those that they should be."""
    over: str
    """What was compared, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Two generations from one prompt."""

    alike: int
    """Tokens that are the same before the first that is not."""
    tokens: int
    logits: Apart
    """As far as the tokens before them are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """What onnx's own checker says of a file."""

    fault: str | None
    opset: int | None
    """None where there is a fault."""


def compare(ours: Generated, theirs: Generated) -> Likeness:
    """How many tokens are the same, and how far logits are apart up to the first that is not."""
    alike = 0
    for a, b in zip(ours.tokens, theirs.tokens, strict=True):
        if a != b:
            break
        alike += 1
    total = len(ours.tokens)
    compared = min(alike + 1, total)  # the logits that first differ in their choice have one past
    return Likeness(
        alike=alike,
        tokens=total,
        logits=_apart(ours.logits[:compared], theirs.logits[:compared], f"{compared} positions"),
    )


def _apart(first: Sequence[Tensor], other: Sequence[Tensor], over: str) -> Apart:
    pairs = list(zip(first, other, strict=True))
    return Apart(
        error=max(float((b - a).abs().max()) for a, b in pairs),
        largest=max(float(a.abs().max()) for a, _ in pairs),
        over=over,
    )


def whole_pass(runner: Runner, prompt: Tensor, generated: Generated) -> Apart:
    """Logits by the cache, step by step, against a pass over all tokens at once."""
    import torch

    ids = torch.cat((prompt, torch.tensor([generated.tokens[:-1]], dtype=torch.int64)), dim=1)
    logits, _ = runner.forward(ids, runner.empty())
    whole = logits[0, prompt.shape[1] - 1 :]
    return _apart([whole], [torch.cat(generated.logits)], f"{len(generated.logits)} positions")


def other_sizes(model: Any, path: str) -> Apart:
    """Sizes that were no example of the export: logits of the graph against the model's."""
    import torch

    graph, plain = OnnxRunner(path, model.config), with_flat_cache(model)
    cases = ((1, 9, 0), (3, 1, 4), (1, 1, 1), (2, 6, 11))
    vocabulary, layers = model.config.vocab_size, model.config.num_hidden_layers
    random = torch.Generator().manual_seed(0)
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for batch, tokens, held in cases:
        ids = torch.randint(vocabulary, (batch, tokens), generator=random)
        shape = cache_shape(model.config, batch=batch, tokens=held)
        past = [torch.randn(shape, generator=random) for _ in range(2 * layers)]
        with torch.inference_mode():
            ours.append(plain(ids, *past)[0])
        theirs.append(graph.forward(ids, graph.values(past))[0])
    sizes = ", ".join(" × ".join(map(str, case)) for case in cases)
    return _apart(ours, theirs, f"batch × tokens × cached of {sizes}")


def validity(path: str) -> Validity:
    """The file under onnx's own checker, shapes inferred."""
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Validity(fault=first_line(error), opset=None)
    imports = onnx.load(path, load_external_data=False).opset_import
    return Validity(fault=None, opset=max(entry.version for entry in imports))
