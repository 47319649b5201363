"""Bytes of a model in each format: weights, KV cache, working set, runtime; and the context.

weights, kv_cache, activations ─► prediction, their sum ─► context, the largest that fits
"""

MOST_GPUS = 64
"""That a model is spread over: those of the largest racks whose GPUs are linked (NVL72 has 72)."""
