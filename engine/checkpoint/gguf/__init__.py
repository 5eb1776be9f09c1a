"""What a GGUF file says of its model, read without torch: shape, tokenizer, chat template."""
