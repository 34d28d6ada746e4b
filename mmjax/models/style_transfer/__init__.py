"""Networks that draw pictures in other styles, with weights that others trained; no style is trained here.

Functions of plain dictionaries of arrays, by the names of the files that they come from, with kernels turned to
[height, width, in, out].
"""
