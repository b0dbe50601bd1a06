//! The gateway over an engine that follows a script: everything that a client can see.

#[cfg(test)]
mod chat;
#[cfg(test)]
mod completions;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod fake_engine;
#[cfg(test)]
mod fields;
#[cfg(test)]
mod grpc;
#[cfg(test)]
mod grpc_client;
#[cfg(test)]
mod grpc_keys;
#[cfg(test)]
mod infrastructure;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod options;
#[cfg(test)]
mod patience;
#[cfg(test)]
mod random_bodies;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod streams;
