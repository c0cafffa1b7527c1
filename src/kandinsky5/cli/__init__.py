"""The command line: reads what a person typed, calls the engine, writes pictures and one line about each."""
