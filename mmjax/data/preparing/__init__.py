"""``mmjax data prepare``: writes any source as a TFDS data set of ArrayRecord shards."""
