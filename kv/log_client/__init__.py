"""The worker's side of the socket to logd. Knows the messages and what they mean for a request; no HTTP, no files.

`client` owns the socket and hands each message on to the part that it belongs to: `writes`, `reads` or `status`.
"""
