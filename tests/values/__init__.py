"""Values: requests, sizes, checkpoints, the public surface. Nothing here needs torch."""
