"""Colours of all plots."""

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by everyone. Source: jfly.uni-koeln.de/color"""
