"""Training: the objective, one update, the loop and its state, whatever the model and the data."""
