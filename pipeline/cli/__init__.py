"""The commands of `gatehouse`, one module each; `app.py` only parses."""
