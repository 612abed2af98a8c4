"""Bookkeeping in plain integers: which expert lies in which slot, and which expert leaves next."""
