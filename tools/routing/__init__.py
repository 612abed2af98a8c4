"""What routers choose: recorded, measured, and replayed on eviction rules."""
