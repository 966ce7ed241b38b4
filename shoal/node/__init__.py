"""The node daemon and its zygote: processes, leases, store quotas, logs of one machine.

Reading guide: `head` (how the process starts and ends), `daemon` (who gets which message), `workers` and `zygote`
(processes), `actors`, `store`, `logs`, `queries`.
"""
