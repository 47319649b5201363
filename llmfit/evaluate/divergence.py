"""How far a row's next-token distributions are from the reference row's, on the same tokens.

    reference row ─► score(visit=ReferenceWriter) ─► file of logits, written once, bounded
                                                          │ read back a few tokens at a time
    any other row ─► score(visit=DivergenceMeter) ◄───────┘ ─► KL and top-1 per token ─► Divergence

Logits are stored as the reference's engine gives them: a 16-bit row's lose nothing and take half
of what float32 log-probabilities would.
"""

from __future__ import annotations

import io
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from llmfit.decode.base import Window
from llmfit.errors import StoreError
from llmfit.evaluate.blocks import block_totals
from llmfit.records import Divergence, from_json
from llmfit.stats import ratio_interval

if TYPE_CHECKING:
    import torch

_HEADER_BYTES = 1024
_LOGIT_BYTES = 2
"""Bytes of a logit that windows are counted out with; a float32 reference is cut off sooner."""
_PART_VALUES = 2**20
"""Logits worked on at a time: 4 MiB in float32, 8 tokens of a vocabulary of 128 k."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The file of the reference row's logits, and whether this row writes it or reads it."""

    path: Path
    writes: bool
    """True for the reference row itself."""
    backend: str
    """Backend id of the reference row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceHeader:
    """What the file's logits are of: JSON in its first ``_HEADER_BYTES``, padded by spaces."""

    backend: str
    dtype: Literal["bfloat16", "float16", "float32"]
    vocab_size: int
    n_tokens: int
    n_windows: int
    windows_digest: str
    """Of the first ``n_windows`` windows of the text."""

    @property
    def row_bytes(self) -> int:
        return self.vocab_size * (4 if self.dtype == "float32" else 2)


def watch(
    reference: Reference, windows: Sequence[Window], *, vocab_size: int, limit_bytes: int
) -> Watch:
    """A writer of the reference's logits, or a meter that reads them, for a text's ``windows``.

    The file is at most ``limit_bytes`` long: it holds the logits of as many of the first
    windows, whole, as fit; where not one does, of the first one's first tokens.
    """
    if reference.writes:
        return ReferenceWriter(reference, windows, vocab_size=vocab_size, limit_bytes=limit_bytes)
    return DivergenceMeter(reference, windows)


def remove_reference(path: Path) -> None:
    """Remove the logits at ``path``, and what a killed writer left of them. Raises OSError."""
    for file in (path, *path.parent.glob(f".{path.name}-*")):
        file.unlink(missing_ok=True)


class Watch(ABC):
    """Sees the logits of a text's first windows while they are scored; close it after use.

    Its own mishaps, as a full disk or a file of another text, become a note and never an error:
    the row's perplexity still counts.
    """

    n_windows: int = 0
    """How many of the text's first windows are to be scored with this as their visitor."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._stream: io.BufferedIOBase | None = None
        self._note: str | None = None

    def __call__(self, logits: torch.Tensor) -> None:
        """See ``LogitsVisitor``."""
        if self._note is None:
            try:
                self._see(logits)
            except (OSError, StoreError) as exc:
                self._fail_with(exc)

    def result(self, lengths: Sequence[int]) -> tuple[Divergence | None, tuple[str, ...]]:
        """The divergence, or None, with notes, once all windows are scored.

        ``lengths`` are the numbers of scored tokens of the windows in the order of scoring.
        """
        divergence = None
        if self._note is None:
            try:
                divergence = self._finish(lengths)
            except OSError as exc:
                self._fail_with(exc)
        return divergence, () if self._note is None else (self._note,)

    @abstractmethod
    def _see(self, logits: torch.Tensor) -> None: ...

    @abstractmethod
    def _finish(self, lengths: Sequence[int]) -> Divergence | None: ...

    def _fail_with(self, exc: OSError | StoreError) -> None:
        if isinstance(exc, OSError):
            self._fail(f"{self._reference.path}: {exc.strerror}")
        else:
            self._fail(exc.message.removesuffix("."))

    def _fail(self, reason: str) -> None:
        self._note = f"no divergence: {reason}."
        self.close()

    def close(self) -> None:
        """End watching; what is not complete by then is removed."""
        if self._stream is not None:
            with suppress(OSError):  # its buffer meets the same full disk; the note says so already
                self._stream.close()


class ReferenceWriter(Watch):
    """Writes the logits it sees into ``reference.path``: complete, or not at all."""

    def __init__(
        self,
        reference: Reference,
        windows: Sequence[Window],
        *,
        vocab_size: int,
        limit_bytes: int,
    ) -> None:
        super().__init__(reference)
        path = reference.path
        self._temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        self._room_bytes = max(0, limit_bytes - _HEADER_BYTES)
        self.n_windows = _windows_that_fit(windows, self._room_bytes // (_LOGIT_BYTES * vocab_size))
        self._windows = windows[: self.n_windows]
        self._missing = 0
        try:
            remove_reference(path)  # an older run's logits must not serve for this one's
        except OSError as exc:
            self._fail_with(exc)

    def _see(self, logits: torch.Tensor) -> None:
        if self._stream is None:
            self._begin(logits)
        if self._stream is not None:
            rows = logits[: self._missing]
            for part in _parts(rows):
                self._stream.write(_bytes(part))
            self._missing -= len(rows)

    def _begin(self, logits: torch.Tensor) -> None:
        """Open the file, now that the logits' type and number are known."""
        vocab_size = logits.shape[1]
        fitting = self._room_bytes // (vocab_size * logits.element_size())
        if fitting == 0:
            self._fail(
                f"{vocab_size} logits of one token do not fit into the {self._room_bytes} bytes "
                "kept for the reference's"
            )
            return
        self._missing = min(fitting, sum(map(scored_tokens, self._windows)))
        header = ReferenceHeader(
            backend=self._reference.backend,
            dtype=str(logits.dtype).removeprefix("torch."),  # type: ignore[arg-type]
            vocab_size=vocab_size,
            n_tokens=self._missing,
            n_windows=self.n_windows,
            windows_digest=_digest(self._windows),
        )
        self._stream = self._temporary.open("xb")
        self._stream.write(msgspec.json.encode(header).ljust(_HEADER_BYTES))

    def _finish(self, lengths: Sequence[int]) -> None:
        if self._stream is None or self._missing:
            self._fail(f"{self._missing} tokens' logits were not seen")
            return
        self._stream.close()  # what is buffered may still meet a full disk
        self._temporary.replace(self._reference.path)

    def close(self) -> None:
        """See ``Watch.close``."""
        super().close()
        self._temporary.unlink(missing_ok=True)


class DivergenceMeter(Watch):
    """Compares the logits it sees with the reference's, token by token."""

    def __init__(self, reference: Reference, windows: Sequence[Window]) -> None:
        super().__init__(reference)
        self._seen = 0
        try:
            self._open(windows)
        except FileNotFoundError:
            self._fail(f"{reference.backend} left no logits to compare with")
        except (OSError, StoreError) as exc:
            self._fail_with(exc)

    def _open(self, windows: Sequence[Window]) -> None:
        path = self._reference.path
        self._stream = path.open("rb")
        self._header = from_json(
            ReferenceHeader, self._stream.read(_HEADER_BYTES), source=str(path)
        )
        expected = _HEADER_BYTES + self._header.n_tokens * self._header.row_bytes
        size = path.stat().st_size
        if size != expected:
            self._fail(f"{path} has {size} bytes and not the {expected} that it should have")
        elif _digest(windows[: self._header.n_windows]) != self._header.windows_digest:
            self._fail(f"{path} is of another text, tokenizer or window")
        else:
            self.n_windows = self._header.n_windows
            # Small results between large temporaries would keep the heap from being used again.
            self._kl = np.empty(self._header.n_tokens)  # nats
            self._agree = np.empty(self._header.n_tokens, dtype=bool)

    def _see(self, logits: torch.Tensor) -> None:
        if logits.shape[1] != self._header.vocab_size:
            self._fail(
                f"this row gives {logits.shape[1]} logits a token, "
                f"{self._header.backend} {self._header.vocab_size}"
            )
            return
        rows = logits[: self._header.n_tokens - self._seen]
        for part in _parts(rows):
            here = slice(self._seen, self._seen + len(part))
            expected = self._read(len(part)).to(part.device)
            self._kl[here], self._agree[here] = compare_logits(expected, part)
            self._seen += len(part)

    def _read(self, rows: int) -> torch.Tensor:
        """The next ``rows`` of the reference's logits [rows, V], in its own type."""
        import torch

        buffer = bytearray(rows * self._header.row_bytes)
        if self._stream is None or self._stream.readinto(buffer) != len(buffer):
            raise StoreError(f"{self._reference.path} ends before its last token.")
        dtype = getattr(torch, self._header.dtype)
        return torch.frombuffer(buffer, dtype=dtype).view(rows, self._header.vocab_size)

    def _finish(self, lengths: Sequence[int]) -> Divergence | None:
        if self._seen != self._header.n_tokens:
            self._fail(f"{self._seen} of {self._header.n_tokens} tokens' logits were seen")
            return None
        kl, agree = self._kl, self._agree
        if not np.isfinite(kl).all():
            infinite = np.count_nonzero(~np.isfinite(kl))
            self._fail(f"it is not finite for {infinite} of {len(kl)} tokens")
            return None
        runs = _cut(lengths, len(kl))
        kl_interval = ratio_interval(*block_totals(kl, runs)) or (None, None)
        top1_interval = ratio_interval(*block_totals(agree, runs)) or (None, None)
        return Divergence(
            reference=self._header.backend,
            n_tokens=len(kl),
            mean=float(kl.mean()),
            low=kl_interval[0],
            high=kl_interval[1],
            median=float(np.median(kl)),
            p99=float(np.percentile(kl, 99)),
            top1_agreement=float(agree.mean()),
            top1_low=top1_interval[0],
            top1_high=top1_interval[1],
        )


def compare_logits(reference: torch.Tensor, row: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference ‖ row) in nats, float64[n], and top-1 agreement, bool[n], of logits [n, V].

    Computed in float32 and summed in float64, within 1e-6 nats for distributions as close as an
    8-bit row's. KL is never negative: what rounding leaves below 0 is 0. Two tokens of equal
    logits, as bfloat16 often has, are both the most likely: the sides agree where they share one.
    Source: Kullback and Leibler (1951), Ann. Math. Stat. 22(1).
    """
    import torch
    from torch.nn.functional import kl_div

    same_top = reference.amax(-1) == _at(reference, row.argmax(-1))
    same_top |= row.amax(-1) == _at(row, reference.argmax(-1))
    expected = reference.float().log_softmax(dim=-1)
    found = row.float().log_softmax(dim=-1)
    terms = kl_div(found, expected, log_target=True, reduction="none")
    # 0 · log 0 is 0 here: a token that the reference excludes adds nothing.
    terms.masked_fill_(expected.isneginf(), 0.0)
    kl = terms.sum(dim=-1, dtype=torch.float64).clamp_min(0.0)
    return kl.cpu().numpy(), same_top.cpu().numpy()


def _at(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [n] of ``tokens`` int64[n] in ``logits`` [n, V]."""
    return logits.gather(1, tokens[:, None])[:, 0]


def scored_tokens(window: Window) -> int:
    """Number of tokens that a window scores."""
    return len(window.ids) - window.score_from


def _windows_that_fit(windows: Sequence[Window], tokens: int) -> int:
    """How many first windows score ``tokens`` tokens at most together; at least one."""
    totals = accumulate(map(scored_tokens, windows))
    return max(1, sum(total <= tokens for total in totals))


def _cut(lengths: Sequence[int], total: int) -> list[int]:
    """``lengths`` up to where they add up to ``total``, the last one cut."""
    ends = [min(end, total) for end in accumulate(lengths)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False) if end > start]


def _digest(windows: Sequence[Window]) -> str:
    """What tells these windows from any others."""
    digest = blake2b(digest_size=20)
    for window in windows:
        digest.update(np.array([len(window.ids), window.score_from, *window.ids]).tobytes())
    return digest.hexdigest()


def _parts(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """``logits`` [n, V] in pieces of ``_PART_VALUES`` values at most, but one row at least."""
    rows = max(1, _PART_VALUES // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield logits[start : start + rows]


def _bytes(logits: torch.Tensor) -> memoryview:
    """The bytes of ``logits`` as they are, whatever the type: NumPy has no bfloat16."""
    import torch

    return logits.cpu().contiguous().view(torch.uint8).numpy().data
