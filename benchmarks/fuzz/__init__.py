"""Hostile files against everything that reads files from strangers, in processes with limits.

    python -m benchmarks.fuzz --seed 0 --cases 24000 --out benchmarks/results/fuzz.json

    whole file ─► mutate (bytes) ────┐
                                     ├─► a file in a folder ─► what llmfit reads it with
    hypothesis ─► values (structure) ┘        │
                                              ├─► success or an LlmfitError: as promised
                                              └─► anything else: a find

Each batch of cases is a process of its own (``child``) with a limit on its memory, on each case's
time, and a hook that sees every file it opens; ``parent`` counts what comes back, and a process
that dies is a find too. ``targets`` lists the readers. The same numbers give the same cases.
"""
