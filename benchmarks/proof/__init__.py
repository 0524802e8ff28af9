"""The proof that the gates can fail: bad models, tokenizers and shards, made on purpose, meet the real gates."""
