"""InstructGPT in JAX: pretrain → SFT → rankings → reward model → PPO-ptx, one program from a laptop
to a pod.
"""
