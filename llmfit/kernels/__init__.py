"""Kernels of a decode step, compiled where they run: C++ for CPUs, Triton for GPUs."""
