from hypothesis import settings

from .kernel_tree import tree

__all__ = ["tree"]

# The same examples each time: chance has its place in tools/fuzz.
settings.register_profile("suite", derandomize=True, database=None, deadline=None, max_examples=250)
settings.load_profile("suite")
