"""What a conversion lost, and where."""
