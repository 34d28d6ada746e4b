"""Where the shards of a recipe are made: ``--engine=NAME`` is the function ``run`` of the module of that name."""
