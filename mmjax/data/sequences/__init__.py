"""Sequences of features and of labels, from what a source gives to arrays of one length."""
