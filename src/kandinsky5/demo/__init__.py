"""The embedded model: the world it draws, how it was trained, how it is scored, and its weights.

For the world read `world`, `renderer` and `captions`; for training `architecture` and `train`; for scoring `score`.
"""
