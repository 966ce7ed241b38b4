"""The public programming model: names and meanings of Ray Core, on shoal's runtime.

Reading guide: `session` is `init` and `shutdown`; `options` checks what users pass; `functions` and `actors` are remote functions
and classes; `objects` is get, put, wait, cancel, kill; `runtime_context` and `cluster` answer questions.
"""
