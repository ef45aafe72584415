from .kernel_tree import tree

__all__ = ["tree"]
