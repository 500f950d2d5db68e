"""Memory schemes that make compression converge, one per file."""
