"""What runs reducers over a training's buckets, whatever holds the gradients: order, failure, agreement, statistics."""
