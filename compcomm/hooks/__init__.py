"""What ties a host, such as DDP, to a reducer."""
