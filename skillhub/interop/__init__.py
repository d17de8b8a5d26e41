"""What other libraries make, seen as deltas: LoRA adapters of peft."""
