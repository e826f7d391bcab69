"""Where artifacts and the client's records lie. One file per kind of store; `base` is what each must do."""
