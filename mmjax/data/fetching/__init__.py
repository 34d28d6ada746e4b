"""``mmjax data fetch``: open data sets that are built from packages at fixed versions."""
