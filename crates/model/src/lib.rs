//! Model families and weight loading (GGUF), generic over the Backend trait.
