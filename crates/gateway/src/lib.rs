//! HTTP: parsing, validation, chat templates, tokenizing, detokenizing, streaming.
