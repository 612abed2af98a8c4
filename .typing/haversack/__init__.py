"""What the type checkers know as the installed package."""
