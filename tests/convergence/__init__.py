"""Exact values: identities, variances, conservation and rates that theory gives, on the real kernels.

Arithmetic is fp32 in the package and fp64 here, so tolerances are those of fp32 unless a test says otherwise.
"""
