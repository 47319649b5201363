"""Figures held against others: a row's against the reference row's, again, as published.

comparable      may two rows be compared at all?
differences     against the reference row
agreement       against the same row, recorded before
reference       against a published table
published_quality   what a format costs on other models
"""
