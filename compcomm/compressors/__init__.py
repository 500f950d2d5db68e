"""Compressors, one method per file."""
