"""The state machine: observe, plan, act, record. `plan` decides and is pure; the rest does what it says."""
