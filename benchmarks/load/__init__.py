"""Parts of `serving.py`: a server in a process of its own, what its clients ask for, how they ask, what is measured."""
