"""GPUs that a plan can be made for: figures of their data sheets, and the shares of them that a plan counts on.

Sources: NVIDIA H100 Tensor Core GPU data sheet (SXM5; rates without structured sparsity: 989 TFLOP/s bf16, 67 fp32, 80
GB at 3.35 TB/s, NVLink 900 GB/s both ways together); NVIDIA H200 data sheet (SXM; as H100, 141 GB at 4.8 TB/s); NVIDIA
A100 data sheet (SXM4 80 GB; 312, 19.5, 2.039 TB/s, NVLink 600 GB/s). Nodes: NVIDIA DGX H100, H200 and A100 data sheets
(8 GPUs; for each GPU one network port of 400 Gbit/s, 200 for the A100). GeForce RTX 3090: GA102 whitepaper (bf16 with
fp32 accumulation 71, fp32 35.6 TFLOP/s, 936 GB/s); RTX 4090: Ada whitepaper (165.2, 82.6, 1,008 GB/s); RTX 5090:
Blackwell whitepaper (209.5, 104.8, 1,792 GB/s). Their link is PCIe, of 32 GB/s one way (64 for the 5090); a network
of 25 Gbit/s is assumed.
"""

from dataclasses import dataclass

NODE = 8  # GPUs, joined by NVLink
RESERVED = 4 * 2**30  # bytes of a GPU that a plan leaves free: CUDA's context, NCCL's buffers, the allocator's gaps
# Share of the peak rate that matrix products reach, a whole step's other small work included. Public training reports
# lie at 0.35 to 0.6 of the peak (PaLM, arXiv 2204.02311, table 3; Narayanan et al., arXiv 2104.04473, table 1).
COMPUTE_SHARE = 0.5
MEMORY_SHARE = 0.7  # of the memory's bandwidth, which scatters, gathers and element-wise work reach
LINK_SHARE = 0.8  # of a link's bandwidth, which a collective on large tensors reaches
LAUNCH = 40e-6  # seconds that the host takes to start one kernel and, in training, to note it for backward; assumed
LATENCY = 20e-6  # seconds that a collective takes for the first byte, for each doubling of its ranks


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in its usual node; in bytes, and bytes a second."""

    memory: float
    rate: dict[str, float]  # operations a second by precision, without structured sparsity
    bandwidth: float  # of its memory
    link: float  # over NVLink in one direction, to the GPUs of its node
    network: float  # in one direction, to other nodes


GPUS = {
    "h100": Gpu(80e9, {"bf16": 989e12, "fp32": 67e12}, 3.35e12, 450e9, 50e9),
    "h200": Gpu(141e9, {"bf16": 989e12, "fp32": 67e12}, 4.8e12, 450e9, 50e9),
    "a100": Gpu(80e9, {"bf16": 312e12, "fp32": 19.5e12}, 2.039e12, 300e9, 25e9),
    "rtx3090": Gpu(24e9, {"bf16": 71e12, "fp32": 35.6e12}, 0.936e12, 32e9, 3.1e9),
    "rtx4090": Gpu(24e9, {"bf16": 165.2e12, "fp32": 82.6e12}, 1.008e12, 32e9, 3.1e9),
    "rtx5090": Gpu(32e9, {"bf16": 209.5e12, "fp32": 104.8e12}, 1.792e12, 64e9, 3.1e9),
}
