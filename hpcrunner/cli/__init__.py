"""The command: arguments in, text out. What it does is elsewhere."""
