"""Decoding and scoring with llama.cpp, over llama-cpp-python's low-level functions.

llama-cpp-python's own ``generate`` costs about a tenth of the rate: it copies every step's logits
and rebuilds its batch. Here the batch's arrays are written in place and the logits are read where
llama.cpp left them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmfit.decode.base import GREEDY, Decoder, Sampling
from llmfit.decode.llama_log import llama_log
from llmfit.errors import LlmfitError, ModelLoadError, UsageError
from llmfit.records import KvCacheDtype

CHUNK_TOKENS = 512
"""Prompt tokens given to llama.cpp at once; its own default for a physical batch."""


_FLASH_HEAD_DIM = 64
"""Narrower heads decode faster without flash attention: heads of 32 at 1.2 × the rate over 128
tokens and 1.6 × over 512, heads of 64 at the same or less. Prompts are faster with it at any."""


def decodes_by_flash(head_dim: int | None, kv_cache_dtype: KvCacheDtype | None) -> bool:
    """True where a decoder's context asks for flash attention; V in blocks needs it."""
    return kv_cache_dtype is not None or head_dim is None or head_dim >= _FLASH_HEAD_DIM


def attention_kernel(
    head_dim: int, kv_cache_dtype: KvCacheDtype | None, *, on_gpu: bool = False
) -> str:
    """The attention kernel that contexts ask for, and the type of its K and V."""
    if on_gpu:
        return f"flash where the GPU's kernels suit (llama.cpp), KV {kv_cache_dtype or 'f16'}"
    flash = "flash" if decodes_by_flash(head_dim, kv_cache_dtype) else "plain, in scoring flash"
    return f"{flash} (llama.cpp), KV {kv_cache_dtype or 'f16'}"


def _memory_error(complaints: str) -> MemoryError | None:
    """What llama.cpp complains of as Python says it, where memory was refused."""
    return MemoryError(complaints) if "allocat" in complaints else None


def gpu_is_found() -> bool:
    """True where llama.cpp has a GPU's code and sees such a GPU. Opens its libraries."""
    import llama_cpp

    llama_log()
    return bool(llama_cpp.llama_supports_gpu_offload())


class LlamaCppModel:
    """A GGUF file loaded by llama.cpp, on the CPU or with all its layers on one GPU."""

    def __init__(
        self,
        file: Path,
        *,
        threads: int,
        head_dim: int | None = None,
        kv_cache_dtype: KvCacheDtype | None = None,
        on_gpu: bool = False,
        repack: bool = True,
    ) -> None:
        """Load ``file``; all its contexts hold K and V in ``kv_cache_dtype`` (None: float16).

        ``head_dim`` is the width of the model's attention heads, where it is known. ``on_gpu`` puts
        all layers and the output on the first GPU, and leaves the embedding in RAM. Without
        ``repack`` weights stay as in the file, and the CPU's kernels for AMX, and for several rows
        at once, are left out. Raises ModelLoadError with llama.cpp's own words, also where the
        model's head size does not suit the type: blocks of q8_0 and q4_0 are 32 values of one head.
        """
        import llama_cpp

        log = llama_log()
        log.forget()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = -1 if on_gpu else 0  # -1 is all
        no_devices = (ctypes.c_void_p * 1)()  # a list that ends with its first entry
        if on_gpu:  # of several GPUs the one that torch takes
            params.split_mode, params.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, 0
        else:  # a build for GPUs would make a context on each
            params.devices = ctypes.addressof(no_devices)
        # Weights are repacked for the CPU's kernels; mapped, the file's pages would stay beside.
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = repack
        self._handle = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self._handle:
            raise ModelLoadError(
                f"llama.cpp cannot load {file}: {log.complaints()}."
            ) from _memory_error(log.complaints())
        self.threads = threads
        self.on_gpu = on_gpu
        self._contexts: set[Context] = set()
        vocabulary = llama_cpp.llama_model_get_vocab(self._handle)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.layers: int = llama_cpp.llama_model_n_layer(self._handle)
        self.context_length: int = llama_cpp.llama_model_n_ctx_train(self._handle)
        self.kv_cache_dtype = kv_cache_dtype
        self.decodes_by_flash = decodes_by_flash(head_dim, kv_cache_dtype)
        if kv_cache_dtype is not None:
            self._try_cache()

    def _try_cache(self) -> None:
        """Make the smallest context, as llama.cpp checks the cache's type only then."""
        try:
            self.context(sequences=1, capacity=1, chunk=1, outputs=1).close()
        except LlmfitError as exc:
            self.close()
            raise ModelLoadError(
                f"llama.cpp refuses a KV cache in {self.kv_cache_dtype} for this model: "
                f"{llama_log().complaints()}.",
                hint="without --kv-cache-dtype, the KV cache stays in float16",
            ) from exc

    def close(self) -> None:
        """Free the weights, and what decoders made from them hold."""
        import llama_cpp

        for context in tuple(self._contexts):
            context.close()
        if self._handle:
            llama_cpp.llama_model_free(self._handle)
        self._handle = None

    def context(
        self,
        *,
        sequences: int,
        capacity: int,
        chunk: int,
        outputs: int,
        unified: bool = False,
        flash: bool = True,
    ) -> Context:
        """A context whose KV cache holds ``sequences`` × ``capacity`` tokens.

        ``chunk`` is the most tokens in one call, ``outputs`` the most rows of logits. Where
        ``unified``, the sequences share ``capacity`` tokens, and tokens with one another. ``flash``
        is asked of the CPU's attention; on a GPU llama.cpp takes it where its kernels suit.
        """
        import llama_cpp

        params = llama_cpp.llama_context_default_params()
        params.n_ctx = capacity if unified else sequences * capacity
        params.kv_unified = unified
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = chunk
        params.n_outputs_max = outputs
        params.n_threads = params.n_threads_batch = self.threads
        if self.on_gpu:  # its kernels lack some head sizes, which would go through the CPU
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        else:
            params.flash_attn_type = (
                llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
                if flash
                else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            )
        if self.kv_cache_dtype is not None:
            name = f"GGML_TYPE_{self.kv_cache_dtype.upper()}"
            params.type_k = params.type_v = getattr(llama_cpp, name)
        params.offload_kqv = params.op_offload = self.on_gpu
        params.no_perf = True
        log = llama_log()
        log.forget()
        handle = llama_cpp.llama_init_from_model(self._handle, params)
        if not handle:
            raise LlmfitError(
                f"llama.cpp cannot make a KV cache of {sequences} × {capacity} tokens: "
                f"{log.complaints()}.",
                hint="fewer --prompt-tokens or a smaller --batch",
            ) from _memory_error(log.complaints())
        context = Context(handle, self.vocab_size, self._contexts)
        self._contexts.add(context)
        return context


class Context:
    """llama.cpp's context: the KV cache and the logits of the last call."""

    def __init__(self, handle: Any, vocab_size: int, siblings: set[Context]) -> None:
        import llama_cpp

        self.handle = handle
        self._siblings = siblings
        self._lib = llama_cpp
        self._vocab_size = vocab_size
        self._memory = llama_cpp.llama_get_memory(handle)
        self._rows: dict[int, np.ndarray] = {}

    def run(self, batch: Batch) -> None:
        """Compute ``batch``. Raises LlmfitError with llama.cpp's own words."""
        code = self._lib.llama_decode(self.handle, batch.struct)
        if code != 0:
            raise LlmfitError(f"llama_decode failed with {code}: {llama_log().complaints()}.")

    def logits(self, index: int) -> np.ndarray:
        """Logits float32[V] of the batch's token ``index``; valid until the next ``run``."""
        pointer = self._lib.llama_get_logits_ith(self.handle, index)
        address = ctypes.addressof(pointer.contents)
        row = self._rows.get(address)
        if row is None:
            row = np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))
            self._rows[address] = row
        return row

    def forget(self, *, keep: int = 0) -> None:
        """Empty the KV cache, or cut sequence 0 back to its first ``keep`` tokens."""
        if keep == 0:
            self._lib.llama_memory_clear(self._memory, False)
        elif not self._lib.llama_memory_seq_rm(self._memory, 0, keep, -1):
            raise LlmfitError(f"llama.cpp cannot cut its KV cache back to {keep} tokens.")

    def share(self, source: int, length: int, sequences: range) -> None:
        """Let empty ``sequences`` begin with the first ``length`` tokens of sequence ``source``."""
        for sequence in sequences:
            self._lib.llama_memory_seq_cp(self._memory, source, sequence, 0, length)

    def drop(self, sequences: range) -> None:
        """Empty ``sequences``; what they share stays with the others."""
        for sequence in sequences:
            self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        if self.handle:
            self._rows.clear()
            self._siblings.discard(self)
            self._lib.llama_free(self.handle)
        self.handle = None


class Batch:
    """llama.cpp's batch over NumPy arrays, all int32[n] but ``wanted``: int8[n]."""

    def __init__(self, size: int, sequences: int) -> None:
        import llama_cpp

        self.size = size
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        self._one = np.ones(size, np.int32)
        self._numbers = np.arange(sequences, dtype=np.int32)
        self._sequences = np.zeros(size, np.uintp)  # addresses within _numbers
        self.struct = llama_cpp.llama_batch(
            n_tokens=size,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            pos=self.positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._sequences.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(
        self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray, wanted: np.ndarray
    ) -> None:
        """Set the batch's content; the arrays have one length, at most the batch's size."""
        count = len(tokens)
        self.struct.n_tokens = count
        self.tokens[:count] = tokens
        self.positions[:count] = positions
        self.wanted[:count] = wanted
        self._sequences[:count] = self._numbers.ctypes.data + sequences * self._numbers.itemsize


class LlamaCppDecoder(Decoder):
    """``Decoder`` over a llama.cpp context, one KV stream per sequence.

    A call ends when its logits are on the host and the tokens are chosen there.
    """

    on_host_clock = True

    def __init__(
        self, model: LlamaCppModel, *, batch: int, capacity: int, prefill_chunk: int | None = None
    ) -> None:
        """``prefill_chunk`` is llama.cpp's physical batch: tokens of all prompts together.

        It is never below ``batch``, whose sequences a step runs at once.
        """
        self.check_chunk(prefill_chunk)
        self.batch = batch
        self.capacity = capacity
        self._chunk = max(batch, min(prefill_chunk or CHUNK_TOKENS, batch * capacity))
        self._context = model.context(
            sequences=batch,
            capacity=capacity,
            chunk=self._chunk,
            outputs=batch,
            flash=model.decodes_by_flash,
        )
        self._prompt = Batch(self._chunk, batch)
        self._next = Batch(batch, batch)
        self._samplers: list[Any] = []
        self._longest = 0

    def prefill(self, prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY) -> None:
        """See ``Decoder.prefill``."""
        self.check_prompts(prompts)
        self._context.forget()
        self._free_samplers()
        if not sampling.greedy:
            self._samplers = [_sampler(sampling, sequence) for sequence in range(self.batch)]
        lengths = np.array([len(prompt) for prompt in prompts])
        tokens = np.concatenate([np.asarray(prompt, np.int32) for prompt in prompts])
        positions = np.concatenate([np.arange(length) for length in lengths])
        sequences = np.repeat(np.arange(self.batch), lengths)
        wanted = np.zeros(len(tokens), np.int8)
        wanted[lengths.cumsum() - 1] = 1
        self._next.fill(
            np.zeros(self.batch), lengths - 1, np.arange(self.batch), np.ones(self.batch)
        )
        self._longest = int(lengths.max())
        for start in range(0, len(tokens), self._chunk):
            part = slice(start, start + self._chunk)
            self._prompt.fill(tokens[part], positions[part], sequences[part], wanted[part])
            self._context.run(self._prompt)
            for index in np.flatnonzero(wanted[part]):
                self._choose(int(index), int(sequences[start + index]))

    def step(self) -> None:
        """See ``Decoder.step``."""
        if self._longest >= self.capacity:
            raise UsageError(f"the KV cache is full: it holds {self.capacity} tokens a sequence.")
        self._longest += 1
        self._next.positions += 1
        self._context.run(self._next)
        for sequence in range(self.batch):
            self._choose(sequence, sequence)

    def tokens(self) -> list[int]:
        """See ``Decoder.tokens``."""
        chosen: list[int] = self._next.tokens.tolist()
        return chosen

    def close(self) -> None:
        """See ``Decoder.close``."""
        self._free_samplers()
        self._context.close()

    def _choose(self, index: int, sequence: int) -> None:
        """Put the token that the logits of ``index`` give into the next step's batch."""
        if not self._samplers:
            self._next.tokens[sequence] = self._context.logits(index).argmax()
            return
        import llama_cpp

        self._next.tokens[sequence] = llama_cpp.llama_sampler_sample(
            self._samplers[sequence], self._context.handle, index
        )

    def _free_samplers(self) -> None:
        import llama_cpp

        for sampler in self._samplers:
            llama_cpp.llama_sampler_free(sampler)
        self._samplers = []


def _sampler(sampling: Sampling, sequence: int) -> Any:
    """llama.cpp's samplers in ``Sampling``'s order, with a seed of the sequence's own."""
    import llama_cpp

    seed = int(np.random.SeedSequence((sampling.seed, sequence)).generate_state(1)[0])
    if seed == llama_cpp.LLAMA_DEFAULT_SEED:  # means "a random one" to llama.cpp
        seed = 0
    parts = [llama_cpp.llama_sampler_init_temp(sampling.temperature)]
    if sampling.top_k > 0:
        parts.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1.0:
        parts.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    parts.append(llama_cpp.llama_sampler_init_dist(seed))
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for part in parts:
        llama_cpp.llama_sampler_chain_add(chain, part)
    return chain
