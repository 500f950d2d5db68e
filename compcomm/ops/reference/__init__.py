"""The truth: every op in plain torch, on any device, written to be read. Faster kernels answer to it bit for bit."""
