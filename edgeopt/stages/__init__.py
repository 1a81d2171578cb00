"""The verbs of the pipeline: ingest, plan, search, measure, select, report. ``pipeline`` puts them in order."""
