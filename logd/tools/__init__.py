"""Commands for people, on a directory."""
