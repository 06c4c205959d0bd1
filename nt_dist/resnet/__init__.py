"""The ResNets: convolutional networks for pictures, bottleneck and pre-activation, as one model family."""
