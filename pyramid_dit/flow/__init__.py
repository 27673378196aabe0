"""The paper in numbers: pyramids, noise, the scheduler, the training objective."""
