"""Runs each row in a process of its own."""
