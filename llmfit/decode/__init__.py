"""The KV-cached decoder: preallocated cache, prefill, step, samplers."""
