"""All that knows the moving shapes: drawing, judge, evaluation, model card."""
