"""Edges: the command line and the README, as a person meets them."""
