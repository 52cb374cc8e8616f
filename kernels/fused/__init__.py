"""Fused Triton kernels. Imported only when they are used: the reference needs no Triton.

``forward``, ``backward`` and ``projection`` hold the kernels, each with the plan of its launches
below it, ``architectures`` which plan an architecture takes, ``tiles`` the reviewed block sizes and
``operators`` the operators.
"""
