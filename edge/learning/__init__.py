"""A drafter that learns from accepted text while it drafts: needs the extra `train`."""
