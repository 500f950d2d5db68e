"""Ways to average a bucket over the workers, one per file."""
