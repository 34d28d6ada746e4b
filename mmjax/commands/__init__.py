"""The subcommands of ``mmjax``, one a file: ``data_prepare.py`` is ``mmjax data prepare``.

A module's docstring is its help: the first line for ``mmjax --help``, the rest for its own. ``add_arguments(parser)``
adds its flags, ``run(args)`` returns the exit status (``args.overrides`` has the pairs of ``--config.KEY=VALUE``).
Imports that take time, such as jax, belong into ``run``.
"""

GROUPS = {"bench": "measure speed and memory", "data": "fetch, prepare, inspect and time data"}
"""The first words of commands that have two, with their help."""
