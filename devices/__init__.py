"""What the computer has and what we may take of it."""
