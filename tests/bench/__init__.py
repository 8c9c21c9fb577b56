"""``python -m tests.bench``: how fast the app is beside its peers, as ratios measured in one run.

``contest`` takes the contestants in turn (A B C A B C ...), ``rows`` says who is compared with whom,
``generator`` is the load, a process of its own, and ``servers`` starts what it loads: ``site`` on an
ASGI server, and the ``peers``.
"""
