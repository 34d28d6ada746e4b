"""What ``mmjax compare`` is made of: recipes, their runs, the statistics, and what the report shows."""
