"""A model of how the reference implementation computes, on the weights of our models.

Written for the benchmarks from a description of the reference: the same numbers as ours (the
tests hold it to that), got in the reference's way. Where the description leaves something open,
the cheaper way is taken.
"""
