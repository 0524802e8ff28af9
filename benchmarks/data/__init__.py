"""`make bench-data`: the way from raw text to packed shards, beside the libraries that do the same."""
