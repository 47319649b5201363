"""Makes what a backend loads: quantised artifacts, cached."""
