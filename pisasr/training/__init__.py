"""Train: photos in, two adapters out.

loop (train, train_stage); stages: which adapters are on and which one learns; losses and csd: what
it is scored by; setup: the model; state: adapters, checkpoints and journals on disk; rng: draws
keyed by sample and step; validation and tracking: what is shown while it runs.
"""
