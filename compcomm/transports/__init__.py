"""What runs the collectives that reducers yield."""
