"""Evolution strategies on Gymnasium's CartPole, in parallel through shoal.

    python -m examples.evolution_strategies

Read it in this order:

    parallel.py   everything that uses shoal: a task, an actor, objects, `wait`
    serial.py     the same work without shoal, for comparison
    learning.py   the algorithm: one loop, which does not know which of the two it runs on
    cartpole.py   the policy and the episodes it plays
    noise.py      the table of random numbers that all perturbations are slices of
    progress.py   what is seen while it runs;  picture.py  the learning curve at the end

                          ┌─────────── parameters (an object) ───────────┐
    driver  ── draw() ──► noise (an actor)                               ▼
      ▲                     └── table (an object, 16 MB) ───────►  rollout tasks
      └───────────────────────── returns, as they come ──────────────────┘
"""
