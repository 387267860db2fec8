"""Make encoders: by distillation from a large teacher, or by supervised training on several datasets at once."""
