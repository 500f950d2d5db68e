"""Each method once more, as plainly as NumPy and Python allow: written to be read, never to be fast.

The package has to equal these, to the bit where the arithmetic is the same. Every function works on one parameter
(a vector of fp32 numbers) and returns bytes or numbers; no tables, no buckets, no collectives.
"""
