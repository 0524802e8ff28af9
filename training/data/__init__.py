"""From sources to token rows: reading, cleaning, packing, the order of data."""
