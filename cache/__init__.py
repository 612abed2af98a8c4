"""Bookkeeping in plain integers: which expert lies in which slot, and who goes next."""
