//! The worker's side of the protocol: loads a model once, then executes plans on a thread of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use futures::stream::{self, BoxStream, StreamExt as _};
use oarlock_collective::{TcpRendezvous, host_identity};
use oarlock_rpc::{HeartbeatStream, LoadEvent, LoadStream, ResultStream, WorkerApi, WorkerError};
use oarlock_types::{LoadOptions, StepPlan, StepResult, WorkerIdentity};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;

use crate::executor::Execute;
use crate::kind::BackendKind;
use crate::load::{LoadSettings, load};
use crate::process::WorkerOptions;
use crate::vitals::Vitals;

/// Messages that wait for the engine to read them.
const QUEUE: usize = 8;

/// A worker on one kind of backend.
pub(crate) struct Worker<K> {
    kind: Arc<K>,
    /// Where it listens for other ranks, if it is to say.
    collective_host: Option<IpAddr>,
    settings: LoadSettings,
    rendezvous: Arc<Mutex<Option<TcpRendezvous>>>,
    vitals: Arc<Vitals>,
    loaded: Arc<Mutex<Option<Box<dyn Execute>>>>,
}

impl<K: BackendKind> Worker<K> {
    pub(crate) fn new(kind: K, options: WorkerOptions) -> Self {
        Self {
            kind: Arc::new(kind),
            collective_host: options.collective_host,
            settings: options.load,
            rendezvous: Arc::default(),
            vitals: Arc::default(),
            loaded: Arc::default(),
        }
    }
}

impl<K: BackendKind> WorkerApi for Worker<K> {
    fn identify(&self) -> WorkerIdentity {
        WorkerIdentity { host: host_identity(), pid: std::process::id() }
    }

    fn listen(&self, local: bool) -> Result<Vec<String>, WorkerError> {
        let anywhere = if local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let ip = self.collective_host.unwrap_or(anywhere.into());
        let rendezvous = TcpRendezvous::bind(ip).map_err(|error| {
            let remedy = "OARLOCK_COLLECTIVE_HOST says which address to take";
            WorkerError::Failed(format!("cannot listen for other ranks on {ip}: {error}; {remedy}"))
        })?;
        let addresses = rendezvous.addresses().to_vec();
        *self.rendezvous.lock().unwrap_or_else(PoisonError::into_inner) = Some(rendezvous);
        Ok(addresses)
    }

    fn watch(&self, every: Duration) -> HeartbeatStream {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let start = (ticks, Arc::clone(&self.vitals));
        let beats = stream::unfold(start, |(mut ticks, vitals)| async move {
            ticks.tick().await;
            Some((Ok(vitals.heartbeat()), (ticks, vitals)))
        });
        beats.boxed()
    }

    fn load(&self, options: LoadOptions) -> LoadStream {
        let (events, receiver) = mpsc::channel(QUEUE);
        let (kind, loaded) = (Arc::clone(&self.kind), Arc::clone(&self.loaded));
        let (vitals, settings) = (Arc::clone(&self.vitals), self.settings.clone());
        let rendezvous = self.rendezvous.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::thread::spawn(move || {
            // A progress message that finds the queue full is dropped: the next one says more.
            let progress = |so_far| drop(events.try_send(Ok(LoadEvent::Progress(so_far))));
            let attempt = catch_unwind(AssertUnwindSafe(|| {
                load(&options, &*kind, &settings, rendezvous, &vitals, progress)
            }));
            let last =
                match attempt.unwrap_or_else(|_| Err(anyhow!("loading panicked; see the log"))) {
                    Ok((executor, description)) => {
                        *loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(executor);
                        Ok(LoadEvent::Done(Box::new(description)))
                    }
                    Err(error) => Err(WorkerError::Failed(format!("{error:#}"))),
                };
            // The engine may be gone; then nobody wants to know.
            drop(events.blocking_send(last));
        });
        ReceiverStream::new(receiver).boxed()
    }

    fn execute(&self, plans: BoxStream<'static, Result<StepPlan, WorkerError>>) -> ResultStream {
        let executor = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(executor) = executor else {
            let error =
                WorkerError::Failed("no model is loaded, or it is executing already".to_owned());
            return stream::once(async { Err(error) }).boxed();
        };
        let (to_thread, inbox) = mpsc::channel(QUEUE);
        let (outbox, results) = mpsc::channel(QUEUE);
        tokio::spawn(forward(plans, to_thread));
        std::thread::spawn(move || execute_plans(executor, inbox, &outbox));
        ReceiverStream::new(results).boxed()
    }
}

async fn forward(
    mut plans: BoxStream<'static, Result<StepPlan, WorkerError>>,
    to_thread: mpsc::Sender<Result<StepPlan, WorkerError>>,
) {
    while let Some(plan) = plans.next().await {
        if to_thread.send(plan).await.is_err() {
            return;
        }
    }
}

fn execute_plans(
    mut executor: Box<dyn Execute>,
    mut inbox: mpsc::Receiver<Result<StepPlan, WorkerError>>,
    outbox: &mpsc::Sender<Result<StepResult, WorkerError>>,
) {
    while let Some(plan) = inbox.blocking_recv() {
        let result = plan.and_then(|plan| {
            let executed = catch_unwind(AssertUnwindSafe(|| executor.execute(&plan)));
            let executed = executed
                .map_err(|_| WorkerError::Failed("a step panicked; see the log".to_owned()))?;
            executed.map_err(|error| WorkerError::Failed(error.to_string()))
        });
        let step = result.as_ref().ok().map(|result| result.step);
        if outbox.blocking_send(result).is_err() {
            return;
        }
        match step {
            Some(step) => executor.handed_on(step),
            None => return,
        }
    }
}
