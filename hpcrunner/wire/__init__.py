"""What travels between the StudioML client and hpcrunner, as typed objects."""
