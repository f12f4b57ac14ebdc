"""Reading much at once: `bench table` and `bench export`.

Owns their defaults, and what is made of their reports. It must not know how a load works, or how a system is started.
Invariant: the export's files lie beside the stores while they are measured, and are gone afterwards.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

from trilogue.bench.driver import Load, Run, job_of, measure, run_load, wait_for_report
from trilogue.bench.load.workload import Workload
from trilogue.bench.report.progress import Progress
from trilogue.bench.report.schema import ExportResult, TableResult, spread
from trilogue.bench.systems import Where, system

TABLE_MESSAGES = 1_000_000
EXPORT_MESSAGES = 10_000_000
EXPORT_SESSIONS = 64


def measure_table(where: Where, progress: Progress, *, messages: int, body_bytes: int, seed: int) -> tuple[TableResult, Run]:
    """One session as a table, from a warm store."""
    Workload(messages, 1, body_bytes, seed)
    with system(where, progress) as running:
        load = Load(
            kind="table", seed=seed, messages=messages, body_bytes=body_bytes,
            settings={"table_messages": messages, "body_bytes": body_bytes},
        )  # fmt: skip
        run = measure("table", load, running, progress)
    bulk = run.report.bulk
    assert bulk is not None
    figures: dict[str, Any] = dict(run.figures)
    return TableResult(**figures, rows=[], tables=len(bulk.seconds), table_s=spread(bulk.seconds)), run


def measure_export(
    where: Where, progress: Progress, *, messages: int, sessions: int, body_bytes: int, seed: int
) -> tuple[ExportResult, Run]:
    """Everything as Parquet files, by a process of its own."""
    messages -= messages % sessions
    Workload(messages, sessions, body_bytes, seed)
    with system(where, progress) as running, tempfile.TemporaryDirectory(dir=running.scratch, prefix="export-") as directory:
        load = Load(
            kind="export", seed=seed, messages=messages, sessions=sessions, body_bytes=body_bytes, file=directory,
            settings={"sessions": sessions, "body_bytes": body_bytes},
        )  # fmt: skip
        job = job_of(load, running)  # one prefix for both
        filled = run_load(job.model_copy(update={"kind": "fill", "file": None}), progress, wait_for_report)
        run = measure("export", replace(load, prefix=job.prefix), running, progress)
    bulk, found = run.report.bulk, filled.found
    assert bulk is not None
    figures: dict[str, Any] = dict(run.figures) | {
        "lost": run.figures.lost + found.lost,
        "duplicated": run.figures.duplicated + found.duplicated,
        "reordered": run.figures.reordered + found.reordered,
    }
    run.report.found.examples.extend(found.examples)
    return ExportResult(**figures, rows=[], grew_mib=bulk.grew_mib, files=bulk.files, file_bytes=bulk.file_bytes), run
