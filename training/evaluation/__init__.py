"""What evaluation jobs measure, and how."""
