"""The machine: the only user of torch.cuda, NVML, psutil and the system's files."""
