"""Two host devices, so that `chain_method="parallel"` runs; JAX reads this when it starts."""

import os

TWO_DEVICES = "--xla_force_host_platform_device_count=2"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {TWO_DEVICES}".strip()
