"""Seconds of a step: its bytes and FLOPs, over what the hardware and the format reach of them.

work ─┐
hardware, efficiency, published, own records ─► calibration ─► roofline
"""
