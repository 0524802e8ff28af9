"""The commands of `gatehouse`, one module each with its signature and its help; `app.py` lists them."""
