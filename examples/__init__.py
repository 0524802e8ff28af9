"""Small programs that show how Gatehouse is used from outside."""
