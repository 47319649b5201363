"""Figures over time: which are followed, where they step, what may have caused it."""
