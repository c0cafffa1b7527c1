"""Tests of the embedded model: its world, its captions, its training."""
