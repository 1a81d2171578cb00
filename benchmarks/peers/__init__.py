"""The field's tools beside edgeopt: what they are, how their artifacts are made, how all are measured and shown.

``peers.py`` beside this folder is the command: field > prepare > produce > measure > table. ``recipes/`` holds one script
a tool, run by that tool's own virtual environment (``requirements/``); nothing here imports a tool.
"""
