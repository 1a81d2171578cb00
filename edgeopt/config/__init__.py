"""YAML to frozen dataclasses: every mistake at once, with line and key; unknown keys name the nearest known one."""
