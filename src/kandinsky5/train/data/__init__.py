"""Pictures and words to learn from: sources, their sizes, what is encoded of them once, and their order."""
