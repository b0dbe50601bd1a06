//! How the ranks of a group will reach each other, from where they are.

use std::path::Path;

use futures::future::try_join_all;
use oarlock_collective::{Segment, shares_memory_with};
use oarlock_rpc::WorkerError;
use oarlock_types::{Epoch, GroupLink};
use tracing::warn;

use crate::options::Collective;
use crate::rank::RankProcess;

/// Where memory can be shared.
const MEMORY_FOLDER: &str = "/dev/shm";

/// The chosen way, and the hosts of the ranks.
pub(crate) struct Links {
    pub(crate) link: GroupLink,
    /// By rank.
    pub(crate) hosts: Vec<String>,
    /// The name of the shared memory, needed until all ranks have it.
    pub(crate) segment: Option<Segment>,
}

impl Links {
    /// Asks the ranks where they are, and prepares the way.
    pub(crate) async fn choose(
        choice: Collective,
        ranks: &mut [RankProcess],
        epoch: Epoch,
    ) -> Result<Self, WorkerError> {
        let identities = try_join_all(ranks.iter_mut().map(|rank| rank.client.identify())).await?;
        let hosts: Vec<_> = identities.into_iter().map(|identity| identity.host).collect();
        if ranks.len() == 1 {
            return Ok(Self { link: GroupLink::Alone, hosts, segment: None });
        }
        let is_local = hosts.iter().all(|host| *host == hosts[0]);
        let shares_memory = is_local && shares_memory_with(&hosts[0]);
        let wants_memory = match choice {
            Collective::Auto => shares_memory,
            Collective::SharedMemory if !shares_memory => {
                let reason = "--collective shared-memory: the ranks and this process do not share the \
                              memory of one host; take tcp";
                return Err(WorkerError::Failed(reason.to_owned()));
            }
            Collective::SharedMemory => true,
            Collective::Tcp => false,
        };
        if wants_memory {
            match Segment::create(Path::new(MEMORY_FOLDER), ranks.len() as u32, epoch.0) {
                Ok(segment) => {
                    let path = segment.path().to_string_lossy().into_owned();
                    let link = GroupLink::SharedMemory(path);
                    return Ok(Self { link, hosts, segment: Some(segment) });
                }
                Err(error) if choice == Collective::SharedMemory => {
                    return Err(WorkerError::Failed(format!(
                        "cannot make shared memory in {MEMORY_FOLDER}: {error}; make it larger, or \
                         take --collective tcp"
                    )));
                }
                Err(error) => {
                    warn!("ranks use TCP: no shared memory in {MEMORY_FOLDER}: {error}");
                }
            }
        }
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)
            .map_err(|error| WorkerError::Failed(format!("no random numbers: {error}")))?;
        let listen = ranks.iter_mut().map(|rank| rank.client.listen(is_local));
        let addresses = try_join_all(listen).await?;
        Ok(Self { link: GroupLink::Tcp { addresses, secret }, hosts, segment: None })
    }
}
