//! Causal language models on candle, with a backward pass and a KV cache.
