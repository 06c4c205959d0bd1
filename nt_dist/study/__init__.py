"""Several runs beside one another: plans of runs, their training, and the tables, pictures and reports made of them."""
