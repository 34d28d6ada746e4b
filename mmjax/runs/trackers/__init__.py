"""Trackers receive metrics besides ``metrics.jsonl``: one a file, with a class ``Tracker`` (see ``common.base``)."""
