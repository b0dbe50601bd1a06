//! Models against references, and against themselves: in one program, since each links everything.

#[cfg(test)]
mod gemma3;
#[cfg(test)]
mod gguf_families;
#[cfg(test)]
mod gguf_kinds;
#[cfg(test)]
mod gguf_parts;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod ranks;
#[cfg(test)]
mod relatives;
#[cfg(test)]
mod scoring;
#[cfg(test)]
mod tiny_gemma3;
#[cfg(test)]
mod tiny_hub;
