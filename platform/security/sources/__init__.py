"""Where root keys lie: a key file, or a hardware security module. Nothing in here imports Django."""
