"""The tars in which artifacts travel: unpacked safely, packed as the client expects them."""
