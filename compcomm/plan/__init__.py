"""What a reducer will cost, before it runs."""
