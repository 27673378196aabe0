"""Training and evaluation of Pyramid Flow models: data, trainers, a judge of clips."""
