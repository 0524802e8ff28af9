"""What is measured and not merely tested."""
