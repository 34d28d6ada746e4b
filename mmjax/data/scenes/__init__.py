"""A procedural world of scenes with one or two flat objects, whose meaning is known exactly.

``world`` draws scene graphs, ``edits`` changes them minimally, ``render`` paints them, ``language`` writes true
captions and ``negatives`` false ones. ``mmjax.data.sources.scenes`` is the data source over these.
"""
