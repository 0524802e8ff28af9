"""What a store holds: its status, what is still needed, what can be deleted, whether it is sound."""
