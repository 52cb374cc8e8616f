"""Fused Triton kernels. Imported only when they are used: the reference needs no Triton.

``primitives`` and ``forward``, ``backward``, ``projection`` hold the kernels, ``planning`` their
launches, ``tiles`` the reviewed block sizes, ``operators`` the operators.
"""
