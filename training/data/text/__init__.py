"""From documents to clean text: words, sentences, cleaning, duplicates, overlap."""
