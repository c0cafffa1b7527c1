"""`python -m kandinsky5`: the command line."""

from kandinsky5.cli.app import main

if __name__ == "__main__":
    main()
