"""TorchSampler as a package, which it has been since it has learned penalties, min_p and seeds one after the other."""

from trtllm_double.options import options, profile

if options().plain_torch_sampler or not profile().get("torch_sampler_package"):
    raise ImportError("a module in this release")
