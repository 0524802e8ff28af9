"""From text to questions, conversations and preference pairs."""
