"""Servers that speak OpenAI's API, measured from outside; nothing of the model is loaded here.

URL ─► endpoint: what it serves and accepts ─► prompts: texts of so many of its tokens
                                              └► load: streaming: requests, so many at once
RequestTrace of each ─► judging: percentiles, throughput, saturation ─► ServerBenchmark
"""
