"""Scores quality: lm-eval adapters and tasks."""
