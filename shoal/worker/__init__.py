"""The executing side: what a worker process does with tasks and calls.

Reading guide: `main` is how a worker begins and ends; `executor` takes work off its inbox and replies; `invocation` is the call
of the user's code itself; `host` is an actor; `streaming` runs generators; `output` marks what is printed.
"""
