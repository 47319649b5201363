"""Servers that others keep, and how each of llmfit's formats is handed to them.

Served: files of a format, name, context, memory ─► Engine ─► command line, files beside it
"""
