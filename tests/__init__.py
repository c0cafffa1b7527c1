"""The suite. Folders follow the levels of the package; tests of one file lie in one file."""
