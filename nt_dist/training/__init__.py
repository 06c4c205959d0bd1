"""Training: the engine, optimizer state, topology updates, checkpoints, and the loop that calls them."""
