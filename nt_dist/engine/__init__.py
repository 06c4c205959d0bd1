"""DeepSpeed's engine, its pipeline and where its optimizers keep their state: all that knows DeepSpeed's internals."""
