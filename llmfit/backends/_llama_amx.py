"""Whether llama.cpp's AMX kernels run here: tried on a tiny file, in a process that they may end.

    llama.cpp wanted ─► built with AMX? ─► child: a file of random weights, a prompt through it
                        no: nothing to try        ended by a signal: a note

GCC 12 takes the tile configuration for dead stores, and newer systems let a thread use tiles only
where it asked itself: then the first prompt ends the process. Source: llama.cpp, issue 20824 and
pull request 26954.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from llmfit.errors import ModelLoadError

_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256,
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
_PROMPT_TOKENS = 64
"""More than one tile has rows."""
_TIME_LIMIT_S = 60.0
_WITHOUT = "-mno-amx-int8 -mno-amx-bf16"
REBUILD = (
    f"CMAKE_ARGS=\"-DCMAKE_C_FLAGS='{_WITHOUT}' -DCMAKE_CXX_FLAGS='{_WITHOUT}'\" pip install "
    "--force-reinstall --no-deps --no-cache-dir llama-cpp-python"
)
"""Builds llama.cpp without them, and with its other kernels for several rows."""


@cache
def why_not_amx() -> str | None:
    """None where llama.cpp has no AMX kernels or they run; else a note. Tried once a process.

    Raises ModelLoadError where the child fails by itself, with its last line, or does not end.
    """
    import llama_cpp

    if b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info():
        return None
    with tempfile.TemporaryDirectory() as folder:  # the child may not live to remove its file
        command = [sys.executable, "-m", __name__, folder]
        try:
            child = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise ModelLoadError(
                f"the trial of llama.cpp's AMX kernels took more than {_TIME_LIMIT_S:.0f} s."
            ) from exc
    if child.returncode == 0:
        return None
    if child.returncode > 0:
        last = (child.stderr.splitlines() or ["nothing"])[-1]
        raise ModelLoadError(f"the trial of llama.cpp's AMX kernels failed, it said: {last}")
    name = signal.Signals(-child.returncode).name
    return f"without llama.cpp's AMX kernels, which end a process here ({name}): {REBUILD}"


def _try(folder: Path) -> None:
    """Run a prompt through one layer with random weights in Q4_K and Q6_K."""
    from llmfit.backends.base import no_progress
    from llmfit.decode.llama_cpp import LlamaCppDecoder, LlamaCppModel
    from llmfit.planning.architectures import read_shape
    from llmfit.quantize.gguf_synthetic import plan_synthetic, write_synthetic

    shape = read_shape(_CONFIG)
    assert shape is not None
    planned = plan_synthetic(_CONFIG, shape, architecture="LlamaForCausalLM", file_type="q4_k_m")
    file = folder / "tiny.gguf"
    write_synthetic(planned, file, name="tiny", seed=0, progress=no_progress)
    model = LlamaCppModel(file, threads=1)
    decoder = LlamaCppDecoder(model, batch=1, capacity=_PROMPT_TOKENS)
    decoder.prefill([list(range(1, _PROMPT_TOKENS))])


if __name__ == "__main__":
    _try(Path(sys.argv[1]))
