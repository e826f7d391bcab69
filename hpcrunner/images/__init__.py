"""Images: content-addressed by all that goes into them, each built once, whatever the number of experiments."""
