"""What a run may be told, and whether it makes sense."""
