"""The experiments of `benchmarks/adaptive.py`: what choosing each layer's setting gains, and what it costs."""
