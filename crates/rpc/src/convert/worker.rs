//! What an engine and its workers tell each other besides plans and results.

use oarlock_types as t;

use super::{ConvertError, required};
use crate::proto as p;
use crate::proto::load_request::Link;

/// Ranks of a group at most.
const MAX_RANKS: u32 = 8;

impl From<&t::LoadOptions> for p::LoadRequest {
    fn from(options: &t::LoadOptions) -> Self {
        let link = match &options.link {
            t::GroupLink::Alone => None,
            t::GroupLink::SharedMemory(path) => Some(Link::SharedMemory(path.clone())),
            t::GroupLink::Tcp { addresses, secret } => {
                let peers = addresses.iter().cloned();
                Some(Link::Tcp(p::TcpLink {
                    peers: peers.map(|addresses| p::Addresses { addresses }).collect(),
                    secret: secret.to_vec(),
                }))
            }
        };
        Self {
            model_path: options.model.clone(),
            limits: Some(options.limits.into()),
            rank: options.shard.rank,
            ranks: options.shard.ranks,
            link,
            stall_ms: options.stall_ms,
            ranks_on_host: options.ranks_on_host,
            hash_weights: options.hash_weights,
        }
    }
}

impl TryFrom<p::LoadRequest> for t::LoadOptions {
    type Error = ConvertError;

    fn try_from(request: p::LoadRequest) -> Result<Self, ConvertError> {
        let out_of_range =
            |field, value: u32| ConvertError::OutOfRange { field, value: value.into() };
        if !(1..=MAX_RANKS).contains(&request.ranks) || !request.ranks.is_power_of_two() {
            return Err(out_of_range("ranks", request.ranks));
        }
        if request.rank >= request.ranks {
            return Err(out_of_range("rank", request.rank));
        }
        let link = match request.link {
            None if request.ranks > 1 => return Err(ConvertError::Missing("link")),
            None => t::GroupLink::Alone,
            Some(Link::SharedMemory(path)) => t::GroupLink::SharedMemory(path),
            Some(Link::Tcp(tcp)) => tcp_link(tcp, request.ranks)?,
        };
        Ok(Self {
            model: request.model_path,
            limits: required(request.limits, "limits")?.into(),
            shard: t::Shard { rank: request.rank, ranks: request.ranks },
            link,
            stall_ms: request.stall_ms,
            ranks_on_host: request.ranks_on_host.clamp(1, request.ranks),
            hash_weights: request.hash_weights,
        })
    }
}

fn tcp_link(tcp: p::TcpLink, ranks: u32) -> Result<t::GroupLink, ConvertError> {
    let num_peers = tcp.peers.len();
    if num_peers != ranks as usize {
        return Err(ConvertError::OutOfRange { field: "peers", value: num_peers as u64 });
    }
    let value = tcp.secret.len() as u64;
    let secret = tcp.secret.try_into();
    let secret = secret.map_err(|_| ConvertError::OutOfRange { field: "secret", value })?;
    let addresses = tcp.peers.into_iter().map(|peer| peer.addresses).collect();
    Ok(t::GroupLink::Tcp { addresses, secret })
}

impl From<t::WorkerIdentity> for p::WorkerIdentity {
    fn from(identity: t::WorkerIdentity) -> Self {
        Self { host: identity.host, pid: identity.pid }
    }
}

impl From<p::WorkerIdentity> for t::WorkerIdentity {
    fn from(identity: p::WorkerIdentity) -> Self {
        Self { host: identity.host, pid: identity.pid }
    }
}

impl From<t::Heartbeat> for p::Heartbeat {
    fn from(beat: t::Heartbeat) -> Self {
        Self { progress: beat.progress, waiting_for: beat.waiting_for, step: beat.step.0 }
    }
}

impl From<p::Heartbeat> for t::Heartbeat {
    fn from(beat: p::Heartbeat) -> Self {
        let step = t::StepId(beat.step);
        Self { progress: beat.progress, waiting_for: beat.waiting_for, step }
    }
}
