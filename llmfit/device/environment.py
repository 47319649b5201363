"""This machine and the versions on it, as a record carries them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from llmfit.device.bandwidth import measure_bandwidth
from llmfit.device.cpu import cpu_name, physical_cores
from llmfit.device.nvml import driver_version
from llmfit.records import Environment

_PACKAGES = (
    "llmfit", "torch", "transformers", "accelerate", "bitsandbytes", "GPTQModel", "optimum",
    "llama-cpp-python", "gguf", "compressed-tensors", "torchao", "hqq", "onnxruntime-genai", "vllm",
    "optimum-quanto", "lm_eval", "datasets", "tokenizers", "numpy", "scipy",
)  # fmt: skip


def environment(*, bandwidth: bool = False, added: Mapping[str, str] | None = None) -> Environment:
    """This machine and the versions of what the rows ran on; measured ``bandwidth`` on request.

    ``added`` are versions of packages that add backends, by name.
    """
    import psutil
    import torch

    packages = dict(added or {})
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = memory = count = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        gpu, memory = properties.name, int(properties.total_memory)
        count = torch.cuda.device_count()
    return Environment(
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=cpu_name(),
        cpu_cores=physical_cores(),
        ram_bytes=int(psutil.virtual_memory().total),
        gpu=gpu,
        gpu_memory_bytes=memory,
        gpu_count=count,
        cuda=torch.version.cuda if gpu else None,
        driver=driver_version() if gpu else None,
        packages=packages,
        cpu_bandwidth=measure_bandwidth("cpu") if bandwidth else None,
        gpu_bandwidth=measure_bandwidth("cuda") if bandwidth and gpu else None,
    )
