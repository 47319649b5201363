"""Several processes that share one model: how they are started, and what each asks of the others.

The one place that uses ``torch.distributed``.
"""
