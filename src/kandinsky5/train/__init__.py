"""Training: `training` is the loop, one for everything; a `lesson` says what is learnt and from what.

Two packages bring lessons: `tuning`, adapters and whole networks on pictures of your own; and `kandinsky5.demo`, which
makes the embedded model, its text encoders and its autoencoder.
"""
