"""What `benchmarks/optimizers.py` measures: optimizers that send compressed momentum, beside Adam and LAMB."""
