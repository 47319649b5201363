"""Predictions and policy from plain facts: no torch, no files."""
