"""The commands of `gatehouse`, one module each; `pipeline/cli.py` only parses."""
