"""The resident process: notices drops, takes them, hands them to workers and publishes what comes back."""
