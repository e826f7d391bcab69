"""What runs the jobs. One file per scheduler; `base` is what each must do."""
