"""The embedded procedural world: scenes of one or two flat objects whose meaning is known exactly.

``world`` draws scene graphs, ``edits`` changes them minimally, ``render`` paints them, ``language`` says true things
about them and ``negatives`` says false ones. ``mmjax.data.sources.scenes`` is the data source over these.
"""
