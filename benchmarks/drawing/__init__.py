"""Parts of `generate.py`: `sections` and `ceilings` measure, `bench` and `ways` are what, `ledger` keeps the rows."""
