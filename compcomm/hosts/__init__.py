"""What hands gradients to the engine, one per file."""
