//! Text to tokens and back: byte-level BPE, chat templates, incremental detokenizing, stop strings.
