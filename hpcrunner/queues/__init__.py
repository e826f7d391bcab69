"""Where experiments come from. One file per kind of broker; `base` is what each must do."""
