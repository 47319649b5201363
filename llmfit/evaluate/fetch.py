"""Evaluation data of the hub, fetched once before any row, so that none waits for a hub by itself.

    python -m llmfit.evaluate.fetch      the child: a JSON job on stdin, a JSON message on stdout

The datasets library prepares them in its own cache, where rows that are offline find them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from llmfit.child import Message
from llmfit.errors import TaskUnavailable
from llmfit.evaluate.datasets_ import load_hub_dataset
from llmfit.evaluate.score import hub_data
from llmfit.hub import fetched
from llmfit.hub_fetch import Watch, serve
from llmfit.records import EvaluationSettings, ModelSpec


def fetch_data(spec: ModelSpec, settings: EvaluationSettings) -> None:
    """Have the datasets of the tasks with columns here, as far as the hub gives them in time.

    What it does not give, each row says by itself.
    """
    wanted = [[*each] for each in hub_data(spec, settings)]
    job = {"task": "datasets", "model": "the evaluation data", "datasets": wanted}
    fetched(job, module="llmfit.evaluate.fetch")


def _datasets(job: Message, watch: Watch) -> Message:
    """Load each dataset, in the child, as a row will."""
    import datasets
    from huggingface_hub import constants

    watch.listen()
    prepared, downloaded = datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE
    for path, config in job["datasets"]:
        watch.watch_folders(
            Path(prepared) / path.replace("/", "___"),
            Path(downloaded) / f"datasets--{path.replace('/', '--')}",
        )
        with suppress(TaskUnavailable):  # the rows say so
            load_hub_dataset(path, config)
    return {"done": True}


if __name__ == "__main__":
    serve({"datasets": _datasets})
