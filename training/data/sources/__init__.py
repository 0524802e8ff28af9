"""From a recipe's sources to a stream of documents, in bounded memory."""
