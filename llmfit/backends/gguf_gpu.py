"""Row ``gguf-gpu``: llama.cpp with all layers on a GPU; file, decoder and scoring of ``gguf``.

    CUDA or HIP build of llama-cpp-python ─► libggml-cuda, libggml-hip beside its libllama
    any other                             ─► unavailable, with the line that builds it

llama.cpp takes the GPU's memory itself, past torch's allocator. So the row's peak is what the
driver gave to the process beyond torch's context, KV cache and compute buffers among it;
``--gpu-gb`` is no cap here, and a peak beyond it is told after the run. Where the driver does not
tell what a process has, as in many containers, the peak is not known.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from llmfit.backends.base import LoadedModel, Package, Progress, no_progress
from llmfit.backends.gguf import Gguf
from llmfit.errors import BackendUnavailable
from llmfit.planning.memory.gguf_mixtures import DEFAULT_TYPE
from llmfit.records import Plan
from llmfit.units import format_bytes

_LIBRARIES = ("ggml-cuda", "ggml-hip")
"""llama.cpp's code for the GPUs that torch calls CUDA devices, a shared library each. Source:
llama-cpp-python 0.3.36, CMakeLists.txt, which installs them into ``llama_cpp/lib``."""
_BUILD = "-C cmake.args=-DGGML_CUDA=on"
"""Source: llama-cpp-python 0.3.36, README.md, which has it as ``CMAKE_ARGS`` too, and lists indexes
of wheels by CUDA version, https://abetlen.github.io/llama-cpp-python/whl/cu130 among them."""
_GPU_BUILD = Package("llama_cpp", "llama-cpp-python built for a GPU")


class GgufGpu(Gguf):
    """GGUF through llama-cpp-python, all layers and the output on one GPU, the embedding in RAM."""

    id = "gguf-gpu"
    place = "GPU"
    label = f"GGUF {DEFAULT_TYPE.upper()} (GPU)"
    devices = frozenset({"cuda"})
    gpu_memory = "driver"
    files_of = "gguf"

    def install_hint(self) -> str:
        """The line that builds llama-cpp-python for CUDA: anew, where another build is here."""
        installed = Package("llama_cpp", "llama-cpp-python").installed()
        if installed is None:
            return f"pip install {_BUILD} llama-cpp-python 'llmfit[{self.extra}]'"
        anew = "--force-reinstall --no-deps --no-cache-dir"
        return f"pip install {anew} {_BUILD} llama-cpp-python=={installed}"

    def missing(self) -> tuple[Package, ...]:
        """The packages that are not installed; one built without a GPU counts as missing."""
        missing = super().missing()
        return missing if missing or has_gpu_build() else (_GPU_BUILD,)

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``. Raises BackendUnavailable where llama.cpp finds no GPU."""
        from llmfit.decode.llama_cpp import gpu_is_found

        self.require(plan)
        if not gpu_is_found():
            raise BackendUnavailable(
                f"{self.id}: llama.cpp is built for a GPU and finds none that it can use.",
                hint="nvidia-smi, for the driver; --backends gguf runs on the CPU",
            )
        loaded = super().load(plan, progress)
        loaded.info = replace(loaded.info, notes=(*loaded.info.notes, *_notes(plan)))
        return loaded


def has_gpu_build() -> bool:
    """True where a GPU's library lies beside llama.cpp's; opens none of them."""
    spec = find_spec("llama_cpp")
    places = () if spec is None else spec.submodule_search_locations or ()
    return any(
        name in file.name
        for place in places
        for file in (Path(place) / "lib").glob("*ggml-*")
        for name in _LIBRARIES
    )


def _notes(plan: Plan) -> tuple[str, ...]:
    """What its memory is, and what a budget means for it."""
    notes = (
        "GPU memory is what the driver gave beyond torch's context: llama.cpp takes it itself",
        "the embedding stays in RAM",
    )
    if plan.budget_bytes is None:
        return notes
    budget = format_bytes(plan.budget_bytes)
    return (*notes, f"the budget of {budget} is no cap on llama.cpp: its peak is held against it")
