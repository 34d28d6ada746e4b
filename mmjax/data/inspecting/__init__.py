"""``mmjax data inspect`` and ``mmjax data bench``: surveys, contact sheets and throughput of a source."""
