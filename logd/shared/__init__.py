"""All of logd that kv may import: the messages, how processes log, and what they use of the machine."""
