"""The benchmark: peers side by side, parity first.

A **peer** is an alternative that is timed beside others; a **variant** is one way in which a peer
can do a case. Nothing is imported here, so that help texts can ask the registry of peers quickly.
"""
