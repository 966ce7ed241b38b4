"""The measured programs.

Each is a generator function over the module under test: it sets up, yields a *batch* (a callable
that does the measured work once and returns how many units that was), and cleans up.  They are
written the way a user would write them, against names that shoal and Ray Core share, so that the
same function measures both.  ``pool.py`` holds the two that take a ``multiprocessing.Pool``, and
``sockets.py`` what two bare sockets do.

A batch checks its own answer where that costs nothing: a fast wrong answer is not a figure.
"""
