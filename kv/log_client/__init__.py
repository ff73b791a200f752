"""The worker's side of the socket to logd. Knows the messages and what they mean for a request; no HTTP, no files."""
