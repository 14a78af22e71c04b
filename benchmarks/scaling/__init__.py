"""`python -m benchmarks.scaling`: a training step at ImageNet's size, and many devices.

- `training_step` measures on one device, whatever backend is active, a training step of each
  network on images of 224 pixels a side (real CIFAR-10 images, enlarged) with 1000 classes, in
  turns with a product of large matrices and a wide convolution. A training step counts 3 times the
  multiply-adds of the forward pass, 2 operations each.
- `all_reduce` measures between processes of this machine how long adding up gradients takes, for
  several numbers of bytes.
- `estimates` works out from such figures what 1, 8 and 64 devices would do (`--estimate`).
- `tables` makes the tables of `docs/imagenet.md` of the committed results and of the assumptions
  in `estimates`.
"""
