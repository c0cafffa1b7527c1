"""Training: the objective, one update, the loop and its state, whatever the model and the data.

Two users: the recipe of the embedded model (`kandinsky5.demo`), which brings a loop's parts itself, and `kandinsky5
train`, which is `training` over `settings`: pictures and words in `data`, what learns and how in `tuning`.
"""
