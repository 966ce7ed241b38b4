"""The speed of shoal, measured next to Ray and ``multiprocessing.Pool`` in one run.

Run ``python -m bench`` (or ``make bench``) from the root of the repository.  Reading order:

    rows.py        what is measured, in which unit, and which ratio is to be reached
    workloads/     the measured programs: plain functions that take the module under test
    peers.py       the systems under test; clusters.py: several nodes of them
    schedule.py    who runs what when: rounds that alternate between the peers
    launch.py      runs one worker process and minds its time, its memory and its leftovers
    worker.py      the measured process: opens a session, samples rows, reports over a link
    measure.py     how a workload becomes samples
    results.py     how samples become a figure, a ratio and a verdict
    report.py      the table, the JSON and the Markdown

Guarantees: both peers run the very same workload functions; each measurement runs in a process
of its own interpreter; nothing that a measurement started outlives it; a row that fails says so
in the table and does not stop the others.
"""
