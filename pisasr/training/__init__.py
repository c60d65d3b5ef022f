"""Train: photos in, two adapters out.

the loop     loop (train, train_stage); stages say what a stage is, losses and csd what it is scored
by before       setup, identity, ground; estimate, for --dry_run kept         state        chance:
every draw belongs to a sample or a step beside       validation, tracking, guard
"""
