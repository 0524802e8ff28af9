"""The store: immutable versions, the records about them, and the bytes under both."""
