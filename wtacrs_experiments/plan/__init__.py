"""What a training step will take: on fake tensors, without data, weights or device."""
