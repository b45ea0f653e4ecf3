"""Inputs that nobody thought of: files and texts from outside, mutated at random.

``--hypothesis-profile long`` tries other and many more of them.
"""
