"""Bytes of a model in each format: weights, KV cache, working set, runtime; and the context.

weights, kv_cache, activations ─► prediction, their sum ─► context, the largest that fits
"""
