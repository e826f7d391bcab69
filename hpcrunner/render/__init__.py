"""Text from templates, with every value quoted for the place where it lands."""
