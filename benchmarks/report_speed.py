"""How long a report takes that is made from a large store.

    python benchmarks/report_speed.py [--records 10000] [--out FILE]

Fills a new SQLite store with rows of ten models in eight formats, night after night, each with its
samples, and makes the report of it as `llmfit report` does: loading and judging, then the page. A
step of −20 % in one model's speed, half-way, must be found; nothing else may be.
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llmfit.device.cpu import cpu_name
from llmfit.files import write_atomically
from llmfit.nightly.stored import report_of_store
from llmfit.records import Comparison, RunRecord, to_json
from llmfit.report.html.page import render_page
from llmfit.stats import sampled
from llmfit.store.heads import RunHead
from llmfit.store.store import Store
from llmfit.testing import make_comparison, make_model, make_record

FORMATS = ("bf16", "sdpa", "compiled", "int8", "nf4", "gptq", "awq", "gguf")
MODELS = 10
REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the script measured."""

    records: int
    figures: int
    store_bytes: int
    load_s: tuple[float, ...]
    """Opening, loading and judging."""
    page_s: tuple[float, ...]
    page_bytes: int
    regressions: tuple[str, ...]
    cpu: str
    python: str


def night_of(base: Comparison, number: int, night: int, draw: random.Random) -> Comparison:
    """The comparison as it came out one night: speeds scatter by 1 %."""
    started = datetime(2025, 1, 1, 3, tzinfo=UTC) + timedelta(days=night, minutes=number)

    def measured(row: RunRecord) -> RunRecord:
        assert row.decode is not None
        factor = 1 + draw.gauss(0, 0.01)
        rates = sampled([rate * factor for rate in row.decode.tokens_per_s.samples])
        decode = replace(row.decode, tokens_per_s=rates)
        return replace(row, decode=decode, started_at=started.isoformat())

    return replace(
        base,
        run_id=f"{started:%Y%m%d-%H%M%S}-model-{number}",
        rows=tuple(map(measured, base.rows)),
    )


def fill(store: Store, records: int) -> int:
    """Store so many rows; the number that was stored."""
    draw = random.Random(0)
    stored = night = 0
    nights = max(2, records // (MODELS * len(FORMATS)))
    bases = [
        make_comparison(
            [make_record(name, tokens_per_s=20 + 5 * place) for place, name in enumerate(FORMATS)],
            model=make_model(name=f"org/model-{number}"),
        )
        for number in range(MODELS)
    ]
    slower = make_comparison(
        [make_record(name, tokens_per_s=0.8 * (20 + 5 * p)) for p, name in enumerate(FORMATS)],
        model=bases[0].model,
    )
    while stored < records:
        for number, base in enumerate(bases):
            late = number == 0 and night >= nights // 2
            comparison = night_of(slower if late else base, number, night, draw)
            head = RunHead(
                run_id=comparison.run_id,
                model=comparison.model,
                workload=comparison.workload,
                environment=comparison.environment,
                backends=FORMATS,
                started_at=str(comparison.rows[0].started_at),
                machine="lab",
            )
            store.put(head, comparison)
            stored += len(comparison.rows)
        night += 1
    return stored


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmfit-report-") as folder:
        place = Path(folder) / "store.db"
        with Store(place) as store:
            records = fill(store, args.records)
        load_s, page_s = [], []
        for _ in range(REPEATS):
            began = time.perf_counter()
            with Store(place) as store:
                report = report_of_store(store, title="x")
            load_s.append(time.perf_counter() - began)
            began = time.perf_counter()
            page = render_page(report)
            page_s.append(time.perf_counter() - began)
        result = Result(
            records=records,
            figures=sum(len(each.points) for each in report.series),
            store_bytes=sum(file.stat().st_size for file in Path(folder).iterdir()),
            load_s=tuple(load_s),
            page_s=tuple(page_s),
            page_bytes=len(page.encode()),
            regressions=tuple(
                f"{r.key.model} {r.key.backend} {r.key.metric} {r.change:+.3f}"
                for r in report.regressions
            ),
            cpu=cpu_name(),
            python=platform.python_version(),
        )
    for name in ("load_s", "page_s"):
        times = sorted(asdict(result)[name])
        print(f"{name}  median {times[len(times) // 2]:.2f}  ({times[0]:.2f}…{times[-1]:.2f})")
    print(f"{records:,} records, {result.figures:,} figures, {result.store_bytes / 1e6:.0f} MB")
    print("\n".join(result.regressions))
    if args.out is not None:
        write_atomically(args.out, to_json(result) + "\n")


if __name__ == "__main__":
    main()
