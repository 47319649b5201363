"""Native kernels of a decode step on a CPU, compiled on the machine that runs them."""
