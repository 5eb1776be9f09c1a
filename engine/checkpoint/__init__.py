"""What a checkpoint's folder says, read without torch: configuration, tokenizer, chat template."""
