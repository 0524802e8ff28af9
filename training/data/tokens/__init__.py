"""From text to token rows: the tokenizer, shards, packing and the order of data."""
