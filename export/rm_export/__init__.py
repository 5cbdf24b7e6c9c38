"""Turn a reward-model checkpoint into one self-contained bundle: graph, weights, tokenizer, prompt rules, proof."""
