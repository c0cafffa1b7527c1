"""Tests of the network: `kandinsky5.model.transformer`."""
