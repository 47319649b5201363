"""llmfit: which deploy format of a language model fits, how fast it is, what quality it costs.

>>> import llmfit
>>> comparison = llmfit.compare(backends=["bf16", "nf4"])
>>> comparison.verdict.backend

Names are resolved at first use: ``import llmfit`` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llmfit.benchmark import Benchmark, Case
    from llmfit.comparison import compare
    from llmfit.decode.base import Sampling
    from llmfit.deployer import Deployer, Generation
    from llmfit.errors import LlmfitError
    from llmfit.executors.ray_cluster import Fleet, RayCluster
    from llmfit.job import ComparisonInterrupted, Observer
    from llmfit.keeping import Keeping
    from llmfit.network import offline
    from llmfit.nightly.config import read_config
    from llmfit.nightly.session import run_night
    from llmfit.nightly.stored import report_of_night, report_of_store
    from llmfit.path import Measuring, find_path
    from llmfit.planner import plan
    from llmfit.planning.advice.advise import Advice, recommend_optimization
    from llmfit.planning.advice.ladder import MemoryPath
    from llmfit.planning.verdict.constraints import Constraints
    from llmfit.planning.verdict.recommend import recommend
    from llmfit.records import (
        Comparison,
        EvaluationSettings,
        ModelPlan,
        RunRecord,
        Verdict,
        Workload,
    )
    from llmfit.reproduction import reproduce
    from llmfit.serving.load import ServerTarget, bench_server
    from llmfit.serving_records import ServerBenchmark, ServerWorkload
    from llmfit.store.store import Store
    from llmfit.study import StudyOptions, run_study, write_study
    from llmfit.study_records import BenchmarkComparison, BenchmarkResult, StudyResult
    from llmfit.trend_records import Report

_HOMES = {
    "Advice": "llmfit.planning.advice.advise",
    "Benchmark": "llmfit.benchmark",
    "BenchmarkComparison": "llmfit.study_records",
    "BenchmarkResult": "llmfit.study_records",
    "Case": "llmfit.benchmark",
    "Comparison": "llmfit.records",
    "ComparisonInterrupted": "llmfit.job",
    "Constraints": "llmfit.planning.verdict.constraints",
    "Deployer": "llmfit.deployer",
    "EvaluationSettings": "llmfit.records",
    "Fleet": "llmfit.executors.ray_cluster",
    "Generation": "llmfit.deployer",
    "Keeping": "llmfit.keeping",
    "LlmfitError": "llmfit.errors",
    "Measuring": "llmfit.path",
    "MemoryPath": "llmfit.planning.advice.ladder",
    "ModelPlan": "llmfit.records",
    "Observer": "llmfit.job",
    "RayCluster": "llmfit.executors.ray_cluster",
    "Report": "llmfit.trend_records",
    "RunRecord": "llmfit.records",
    "Sampling": "llmfit.decode.base",
    "ServerBenchmark": "llmfit.serving_records",
    "ServerTarget": "llmfit.serving.load",
    "ServerWorkload": "llmfit.serving_records",
    "Store": "llmfit.store.store",
    "StudyOptions": "llmfit.study",
    "StudyResult": "llmfit.study_records",
    "Verdict": "llmfit.records",
    "Workload": "llmfit.records",
    "bench_server": "llmfit.serving.load",
    "compare": "llmfit.comparison",
    "find_path": "llmfit.path",
    "offline": "llmfit.network",
    "plan": "llmfit.planner",
    "read_config": "llmfit.nightly.config",
    "recommend": "llmfit.planning.verdict.recommend",
    "recommend_optimization": "llmfit.planning.advice.advise",
    "report_of_night": "llmfit.nightly.stored",
    "report_of_store": "llmfit.nightly.stored",
    "reproduce": "llmfit.reproduction",
    "run_night": "llmfit.nightly.session",
    "run_study": "llmfit.study",
    "write_study": "llmfit.study",
}

__all__ = [
    "Advice",
    "Benchmark",
    "BenchmarkComparison",
    "BenchmarkResult",
    "Case",
    "Comparison",
    "ComparisonInterrupted",
    "Constraints",
    "Deployer",
    "EvaluationSettings",
    "Fleet",
    "Generation",
    "Keeping",
    "LlmfitError",
    "Measuring",
    "MemoryPath",
    "ModelPlan",
    "Observer",
    "RayCluster",
    "Report",
    "RunRecord",
    "Sampling",
    "ServerBenchmark",
    "ServerTarget",
    "ServerWorkload",
    "Store",
    "StudyOptions",
    "StudyResult",
    "Verdict",
    "Workload",
    "__version__",
    "bench_server",
    "compare",
    "find_path",
    "offline",
    "plan",
    "read_config",
    "recommend",
    "recommend_optimization",
    "report_of_night",
    "report_of_store",
    "reproduce",
    "run_night",
    "run_study",
    "write_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmfit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
