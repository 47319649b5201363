"""KL divergence and top-1 agreement against the reference's logits, and the file between them."""

from __future__ import annotations

import random
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from torch.nn.functional import kl_div
from torch.utils._python_dispatch import TorchDispatchMode

from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import LogitsVisitor, Window, WindowScore
from llmfit.evaluate.divergence import Reference, compare_logits, remove_reference, watch
from llmfit.evaluate.perplexity import TextScores, score_text
from llmfit.evaluate.tasks import read_documents
from llmfit.models import data_path
from llmfit.records import Divergence, EvaluationSettings, ModelSpec, Plan
from llmfit.testing import FakeModel

TEXT = ("one two three four " * 40, "five six " * 7, "seven")


class NoisyModel(FakeModel):
    """Random logits that depend on the window and, by ``noise``, on the row."""

    def __init__(
        self,
        *,
        vocab_size: int = 256,
        dtype: torch.dtype = torch.bfloat16,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dtype, self.noise = dtype, noise

    def logits(self, window: Window) -> torch.Tensor:
        """Logits [n, V] of the scored tokens of ``window``."""
        scored = len(window.ids) - window.score_from
        generator = torch.Generator().manual_seed(sum(window.ids) + len(window.ids))
        base, other = torch.randn(2, scored, self.vocab_size, generator=generator) * 3
        return (base + self.noise * other).to(self.dtype)

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        for window in windows:
            logits = self.logits(window)
            for part in logits.split(256):
                if visit is not None:
                    visit(part)
            targets = torch.tensor(window.ids[window.score_from :])[:, None]
            logprobs = logits.double().log_softmax(-1).gather(1, targets)[:, 0]
            yield WindowScore(tuple(logprobs.tolist()), greedy=False)


def run(
    model: LoadedModel, path: Path, *, writes: bool = False, text: Sequence[str] = TEXT, **how: Any
) -> TextScores:
    """Score ``text`` with ``model`` as the reference row, or against it."""
    reference = Reference(path=path, writes=writes, backend="bf16")
    return score_text(model, text, EvaluationSettings(**how), reference=reference)


def expected(kl: np.ndarray, agree: np.ndarray) -> dict[str, float]:
    """The record's plain figures by NumPy."""
    return {
        "mean": float(kl.mean()),
        "median": float(np.quantile(kl, 0.5)),
        "p99": float(np.quantile(kl, 0.99)),
        "top1_agreement": float(agree.mean()),
    }


def figures(divergence: Divergence | None) -> dict[str, float]:
    assert divergence is not None
    return {key: getattr(divergence, key) for key in ("mean", "median", "p99", "top1_agreement")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the reference's logits go."""
    return tmp_path / "reference.logits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_kl_equals_scipy_and_torch_in_float64(dtype: torch.dtype, scale: float) -> None:
    """Per token, KL over full distributions agrees with two libraries within 1e-5 nats."""
    generator = torch.Generator().manual_seed(7)
    ours, other = (torch.randn(2, 50, 30_000, generator=generator) * scale).to(dtype)
    kl, _ = compare_logits(ours, other)
    log_p, log_q = (log_softmax(side.double().numpy(), axis=-1) for side in (ours, other))
    by_scipy = rel_entr(np.exp(log_p), np.exp(log_q)).sum(axis=-1)
    by_torch = kl_div(
        torch.from_numpy(log_q), torch.from_numpy(log_p), log_target=True, reduction="none"
    ).sum(-1)
    assert kl == pytest.approx(by_scipy, rel=1e-5, abs=1e-5)
    assert kl == pytest.approx(by_torch.numpy(), rel=1e-5, abs=1e-5)


def test_a_distribution_diverges_by_nothing_from_itself() -> None:
    """Equal logits give exactly 0 nats and agree; a shift of all logits changes nothing."""
    logits = torch.randn(300, 1000) * 5
    kl, agree = compare_logits(logits, logits.clone())
    assert (kl == 0).all() and agree.all()
    shifted, agree = compare_logits(logits, logits + 11)
    assert (shifted >= 0).all() and shifted.max() < 2e-6 and agree.all()


def test_excluded_tokens_and_ties() -> None:
    """A token of probability 0 adds nothing to KL; two most likely tokens are both most likely."""
    infinity = float("inf")
    reference = torch.tensor([[2.0, 2.0, -infinity], [0.0, 1.0, 2.0], [0.0, 1.0, -infinity]])
    row = torch.tensor([[1.0, 2.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, -infinity]])
    kl, agree = compare_logits(reference, row)
    # ln(½ ÷ q) over the two tokens of the first; Σ p ln(p ÷ q) of the second.
    q = np.exp([1.0, 2.0, 0.0]) / np.exp([1.0, 2.0, 0.0]).sum()
    assert kl[0] == pytest.approx(-np.log(2) - np.log(q[:2]).mean())
    p = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    assert kl[1] == pytest.approx(p[2] - p[1])
    assert kl[2] == 0
    assert agree.tolist() == [True, False, True]


def plain(
    ours: torch.nn.Module, other: torch.nn.Module, windows: Sequence[Window]
) -> tuple[np.ndarray, np.ndarray]:
    """KL and top-1 agreement per token by one forward pass a window, in float64."""
    kls, agrees = [], []
    for window in windows:
        ids = torch.tensor([window.ids[:-1]])
        with torch.inference_mode():
            logits = [side(ids).logits[0, window.score_from - 1 :] for side in (ours, other)]
        log_p, log_q = (side.double().log_softmax(-1) for side in logits)
        kls.append(kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).numpy())
        agrees.append((logits[0].argmax(-1) == logits[1].argmax(-1)).numpy())
    return np.concatenate(kls), np.concatenate(agrees)


@pytest.fixture
def story_model(stories260k: ModelSpec) -> Iterator[LoadedModel]:
    """The trained model of 260 thousand parameters, in bf16."""
    with load(stories260k, "bf16") as model:
        yield model


def load(spec: ModelSpec, backend: str, **more: Any) -> LoadedModel:
    """A row's loaded model on the CPU."""
    plan = Plan(backend=backend, model=spec, device="cpu", threads=1, **more)
    return get_backend(backend).load(plan)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["window", "llama.cpp"])
def test_divergence_equals_plain_forward_passes(
    story_model: LoadedModel, stories260k: ModelSpec, shared_data: Path, path: Path, protocol: str
) -> None:
    """Of rounded weights against bf16 on a real model: the same tokens, the same figures."""
    documents = read_documents(shared_data / "tinystories_sample.txt")
    how = {"ppl_protocol": protocol, "ppl_window": 128, "batch_tokens": 1}
    scores = run(story_model, path, writes=True, text=documents, **how)
    assert scores.divergence is None and scores.notes == ()
    with load(stories260k, "bf16") as other:
        module: Any = other.model  # type: ignore[attr-defined]
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_((weight * 16).round() / 16)
        measured = run(other, path, text=documents, **how).divergence
        assert measured is not None
        kl, agree = plain(story_model.model, module, tuple(scores.known))  # type: ignore[attr-defined]
    assert measured.n_tokens == len(kl) == scores.perplexity.n_tokens
    assert measured.mean > 0.01, "the two rows are meant to differ"
    # Where bf16 logits tie, argmax sees one of the two: at most a few tokens.
    found, wanted = figures(measured), expected(kl, agree)
    assert found.pop("top1_agreement") == pytest.approx(wanted.pop("top1_agreement"), abs=0.02)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert measured.low is not None and measured.high is not None
    assert measured.low < measured.mean < measured.high
    assert measured.top1_low is not None and measured.top1_high is not None
    assert measured.top1_low <= measured.top1_agreement <= measured.top1_high
    assert measured.reference == "bf16"


def test_a_row_is_the_same_as_itself(story_model: LoadedModel, path: Path) -> None:
    """Scored twice, bf16 diverges by 0 nats, interval included, and agrees everywhere."""
    run(story_model, path, writes=True)
    again = run(story_model, path).divergence
    assert again is not None
    assert (again.mean, again.low, again.high, again.median, again.p99) == (0, 0, 0, 0, 0)
    assert (again.top1_agreement, again.top1_low, again.top1_high) == (1, 1, 1)


@pytest.mark.slow
def test_gguf_in_16_bits_is_close_to_bf16(
    embedded: ModelSpec, artifact_cache: Path, path: Path
) -> None:
    """llama.cpp's float32 logits against the file of bf16 ones: another engine, the same model."""
    pytest.importorskip("llama_cpp")
    documents = read_documents(data_path("text.txt"))[:60]
    with load(embedded, "bf16") as model:
        run(model, path, writes=True, text=documents)
    with load(embedded, "gguf:f16", cache_dir=str(artifact_cache)) as model:
        measured = run(model, path, text=documents).divergence
    assert measured is not None
    assert 0 < measured.mean < 2e-4
    assert measured.top1_agreement > 0.995


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_file_keeps_to_its_bytes(path: Path, dtype: torch.dtype) -> None:
    """The first windows that fit, whole; float32 logits end sooner, in the middle of one."""
    # Windows of 128 ids score 128 tokens: the first document has 760 bytes.
    row_bytes = 256 * 2
    bound = 1024 + 300 * row_bytes
    run(NoisyModel(dtype=dtype), path, writes=True, reference_bytes=bound)
    tokens = 256 if dtype.itemsize == 2 else 150
    assert path.stat().st_size == 1024 + tokens * 256 * dtype.itemsize <= bound
    measured = run(NoisyModel(dtype=dtype, noise=0.1), path).divergence
    assert measured is not None
    assert measured.n_tokens == tokens


def test_the_first_tokens_are_compared_in_any_bound(path: Path) -> None:
    """A bound below one window compares its first tokens; below one token, nothing, with a note."""
    how = {"reference_bytes": 1024 + 5 * 512 + 3}
    run(NoisyModel(), path, writes=True, **how)
    model = NoisyModel(noise=0.2)
    scores = run(model, path, **how)
    first = next(iter(scores.known))
    kl, agree = compare_logits(NoisyModel().logits(first)[:5], model.logits(first)[:5])
    assert scores.divergence is not None and scores.divergence.n_tokens == 5
    assert figures(scores.divergence) == pytest.approx(expected(kl, agree))
    assert scores.divergence.low is None, "one block has no interval"

    scores = run(NoisyModel(), path, writes=True, reference_bytes=1024 + 511)
    assert "256 logits of one token do not fit" in scores.notes[0]
    assert not path.exists(), "the older file must not serve either"


def test_order_and_batches_do_not_part_tokens(path: Path) -> None:
    """Windows of many lengths, scored longest first: each token meets its own reference."""
    rng = random.Random(5)
    lengths = (5, 300, 40, 127, 128, 129, 2)
    text = tuple("".join(rng.choices("abcdefgh", k=length)) for length in lengths)
    ours, other = NoisyModel(), NoisyModel(noise=0.3)
    run(ours, path, writes=True, text=text)
    scores = run(other, path, text=text, batch_tokens=50)
    pairs = [compare_logits(ours.logits(window), other.logits(window)) for window in scores.known]
    kl, agree = (np.concatenate(column) for column in zip(*pairs, strict=True))
    assert scores.divergence is not None
    assert scores.divergence.n_tokens == len(kl) == sum(lengths)
    assert figures(scores.divergence) == pytest.approx(expected(kl, agree))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": ("another text",)}, "another text, tokenizer or window"),
        ({"ppl_window": 64}, "another text, tokenizer or window"),
        ({"model": NoisyModel(vocab_size=272)}, "this row gives 272 logits a token, bf16 256"),
    ],
)
def test_what_does_not_match_is_not_compared(path: Path, change: dict[str, Any], says: str) -> None:
    """Another text, window or vocabulary gives a note and no figure; perplexity is not lost."""
    run(NoisyModel(), path, writes=True)
    scores = run(**{"model": NoisyModel(), "path": path} | change)
    assert scores.divergence is None
    assert says in scores.notes[0] and scores.notes[0].startswith("no divergence: ")
    assert scores.perplexity.token > 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1], "has .* bytes and not the"),
        (lambda data: data + b"\0", "has .* bytes and not the"),
        (lambda data: b"\0" * len(data), "is not a ReferenceHeader"),
        (lambda data: b"", "is not a ReferenceHeader"),
        (lambda data: data.replace(b"bfloat16", b"bfloat15"), "is not a ReferenceHeader"),
    ],
)
def test_a_damaged_file_never_serves(path: Path, damage: Any, says: str) -> None:
    """Cut, prolonged, overwritten or empty: a note that names the file."""
    run(NoisyModel(), path, writes=True)
    path.write_bytes(damage(path.read_bytes()))
    scores = run(NoisyModel(), path)
    assert scores.divergence is None
    (note,) = scores.notes
    assert re.search(rf"{path.name} {says}", note)


def test_a_missing_reference_is_a_note(path: Path) -> None:
    """The reference row failed or is not there: the note names it."""
    scores = run(NoisyModel(), path)
    assert scores.divergence is None
    assert scores.notes == ("no divergence: bf16 left no logits to compare with.",)


def test_a_model_without_logits_has_a_perplexity_alone(path: Path) -> None:
    """A note says why there is no divergence, and a reference that is there is left alone."""
    run(NoisyModel(), path, writes=True)
    before = path.read_bytes()

    class Untelling(NoisyModel):
        gives_logits = False

    scores = run(Untelling(noise=0.1), path)
    assert scores.divergence is None and path.read_bytes() == before
    assert scores.notes == (
        "no divergence: this engine tells the probabilities of the text's tokens alone",
    )
    assert scores.perplexity.token > 1


def test_an_infinite_divergence_is_a_note(path: Path) -> None:
    """A row that excludes what the reference expects has no finite KL."""

    class Excluding(NoisyModel):
        def logits(self, window: Window) -> torch.Tensor:
            logits = super().logits(window)
            logits[3, 200] = -float("inf")
            return logits

    run(NoisyModel(), path, writes=True, text=("x" * 10,))
    scores = run(Excluding(), path, text=("x" * 10,))
    assert scores.divergence is None
    assert scores.notes == ("no divergence: it is not finite for 1 of 10 tokens.",)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_full_disk_costs_the_divergence_only(path: Path, size: int) -> None:
    """The row's perplexity is there, a note says why, and no half file stays."""
    with file_limit(size):
        scores = run(NoisyModel(), path, writes=True)
    assert scores.perplexity.n_tokens == sum(map(len, TEXT))
    assert scores.notes[0].startswith(f"no divergence: {path}: File too large")
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_note(path: Path) -> None:
    """A path that cannot be written costs the divergence only."""
    scores = run(NoisyModel(), path / "below", writes=True)
    assert "No such file" in scores.notes[0]


def test_a_failed_reference_leaves_nothing(path: Path) -> None:
    """A row that dies while scoring leaves no file, and the older one does not stay."""

    class Dying(NoisyModel):
        def logits(self, window: Window) -> torch.Tensor:
            if len(window.ids) < 100:
                raise RuntimeError("out of memory")
            return super().logits(window)

    run(NoisyModel(), path, writes=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(RuntimeError, match="out of memory"):
        run(Dying(), path, writes=True)
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(path: Path) -> None:
    """A row that was killed cleans nothing up: removing the reference does, and only that."""
    neighbour = path.with_name("table.json")
    neighbour.write_text("{}")
    reference = Reference(path=path, writes=True, backend="bf16")
    killed = watch(reference, [Window((1, 2, 3), 1)], vocab_size=256, limit_bytes=10_000)
    killed(torch.zeros(1, 256))
    assert len(list(path.parent.iterdir())) == 2
    remove_reference(path)
    assert list(path.parent.iterdir()) == [neighbour]


class LargestTensor(TorchDispatchMode):
    """Notes the number of values of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it gives; views make nothing."""
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not is_view(made, args):
            self.values = max(self.values, made.numel())
        return made


def is_view(made: torch.Tensor, args: Sequence[Any]) -> bool:
    """True where ``made`` is part of the memory of one of ``args``."""
    storage = made.untyped_storage().data_ptr()
    tensors = [given for given in args if isinstance(given, torch.Tensor)]
    return any(tensor.untyped_storage().data_ptr() == storage for tensor in tensors)


def test_memory_is_bounded_for_a_large_vocabulary(path: Path) -> None:
    """For 128,256 tokens no operation makes a tensor of more than 2²⁰ values (4 MiB)."""
    vocabulary = 128_256
    logits = torch.randn(256, vocabulary).to(torch.bfloat16)
    window = Window((0,) * 257, 1)
    reference = Reference(path=path, writes=True, backend="bf16")
    for side in (reference, replace(reference, writes=False)):
        observer = watch(side, [window], vocab_size=vocabulary, limit_bytes=2**30)
        with closing(observer):
            with LargestTensor() as largest:
                observer(logits)
            divergence, notes = observer.result([256])
        assert notes == ()
        assert largest.values <= 2**20
        assert largest.values > 2**19 or side.writes, "the mode sees the work"
    assert divergence is not None
    assert (divergence.n_tokens, divergence.mean) == (256, 0)
