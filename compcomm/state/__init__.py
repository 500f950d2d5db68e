"""What a memory is in a file: quantized slots, merging for another number of workers, whole checkpoints."""
