"""The version of this package, where the build, the command line and a picture's provenance read it."""

__version__ = "0.1.0"
