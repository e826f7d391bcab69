"""What an experiment's program runs in. One file per engine; `base` is what each must do."""
