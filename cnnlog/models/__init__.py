"""Networks from outside: torchvision's classifiers, checkpoints, files of weights. Imports torch."""
