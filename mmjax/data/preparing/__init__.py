"""`mmjax data prepare`: any source to ArrayRecord shards in TFDS's layout."""
