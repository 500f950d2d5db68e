"""What a run did: counters, tables, plots."""
