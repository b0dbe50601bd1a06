//! How others talk to an engine in the same process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use oarlock_rpc::{EngineApi, EngineError, EventStream};
use oarlock_types::{
    EngineDescription, EngineState, EngineStatus, EventKind, FinishReason, Rejected, Request,
    RequestId, Tick,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::EngineOptions;
use crate::core;
use crate::requests::EventSender;

/// Commands that wait for the engine at most; a submitter beyond that waits its turn.
const COMMAND_QUEUE: usize = 1024;

/// What the engine's task is asked to do.
pub(crate) enum Command {
    /// Take a request.
    Submit {
        request: Box<Request>,
        events: EventSender,
        reply: oneshot::Sender<Result<(), Rejected>>,
    },
    /// Finish what runs, take nothing new, end.
    Drain,
}

/// What the engine's task shares with its handles.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) status: Arc<watch::Sender<EngineStatus>>,
    pub(crate) description: Arc<watch::Sender<Option<Arc<EngineDescription>>>>,
    /// Where the engine's clock begins.
    pub(crate) origin: Instant,
}

impl Shared {
    /// The engine's time.
    pub(crate) fn now(&self) -> Tick {
        Tick(self.origin.elapsed().as_micros() as u64)
    }
}

/// A running engine; see [`EngineHandle`] for talking to it.
pub struct Engine {
    handle: EngineHandle,
    task: JoinHandle<()>,
}

/// A cheap handle of an engine.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    cancels: mpsc::UnboundedSender<RequestId>,
    shared: Shared,
    next_id: Arc<AtomicU64>,
}

impl Engine {
    /// Starts an engine: its workers load in the background. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(options: EngineOptions) -> Self {
        let (commands, command_receiver) = mpsc::channel(COMMAND_QUEUE);
        // At most one cancel per live request, so this queue is bounded by theirs.
        let (cancels, cancel_receiver) = mpsc::unbounded_channel();
        let shared = Shared {
            status: Arc::new(watch::Sender::new(EngineStatus::default())),
            description: Arc::new(watch::Sender::new(None)),
            origin: Instant::now(),
        };
        let handle = EngineHandle {
            commands,
            cancels,
            shared: shared.clone(),
            next_id: Arc::new(AtomicU64::new(1)),
        };
        let core = core::Core::new(options, command_receiver, cancel_receiver, shared.clone());
        let task = tokio::spawn(async move {
            let outcome = std::panic::AssertUnwindSafe(core.run()).catch_unwind().await;
            if outcome.is_err() {
                let reason = "the engine panicked; its log says where".to_owned();
                shared.status.send_modify(|status| status.state = EngineState::Failed { reason });
            }
        });
        Self { handle, task }
    }

    /// A handle.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Waits until the engine has loaded, or has given up; the error is its last word.
    pub async fn ready(&self) -> Result<(), EngineError> {
        let mut status = self.handle.shared.status.subscribe();
        let settled = |status: &EngineStatus| {
            matches!(status.state, EngineState::Ready | EngineState::Failed { .. })
        };
        match status.wait_for(settled).await.map(|status| status.state.clone()) {
            Ok(EngineState::Failed { reason }) => Err(EngineError::Unavailable(reason)),
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::Unavailable("the engine ended".to_owned())),
        }
    }

    /// Resolves when the engine has given up, with its last word. Never resolves otherwise.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let mut status = self.handle.shared.status.subscribe();
        async move {
            let failed = |status: &EngineStatus| matches!(status.state, EngineState::Failed { .. });
            let state = status.wait_for(failed).await.map(|status| status.state.clone());
            match state {
                Ok(EngineState::Failed { reason }) => reason,
                _ => futures::future::pending().await,
            }
        }
    }

    /// Takes no new request, lets running ones finish, and ends the workers.
    pub async fn drain(self) {
        // The task may have ended already; then there is nothing to drain.
        drop(self.handle.commands.send(Command::Drain).await);
        drop(self.task.await);
    }
}

impl EngineHandle {
    /// A receiver of every change of the engine's status.
    pub fn watch(&self) -> watch::Receiver<EngineStatus> {
        self.shared.status.subscribe()
    }

    fn current_description(&self) -> Result<Arc<EngineDescription>, EngineError> {
        if let EngineState::Failed { reason } = &self.shared.status.borrow().state {
            return Err(EngineError::Unavailable(reason.clone()));
        }
        let description = self.shared.description.borrow().clone();
        description.ok_or_else(|| EngineError::Unavailable("the model is still loading".to_owned()))
    }

    async fn submit(&self, mut request: Request) -> Result<EventStream, EngineError> {
        self.current_description()?;
        request.id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let id = request.id;
        let now = self.shared.now();
        request.deadline = request.deadline.map(|left| Tick(now.0.saturating_add(left.0)));
        let (events, receiver) = mpsc::unbounded_channel();
        let (reply, answer) = oneshot::channel();
        let gone = || EngineError::Unavailable("the engine has ended".to_owned());
        let command = Command::Submit { request: Box::new(request), events, reply };
        // From here on the request may be running: should this future be dropped, so is the guard.
        let guard = CancelGuard { id, cancels: self.cancels.clone() };
        self.commands.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(EngineError::Rejected)?;
        Ok(event_stream(receiver, guard))
    }
}

/// Cancels its request when dropped; a finished request ignores it.
struct CancelGuard {
    id: RequestId,
    cancels: mpsc::UnboundedSender<RequestId>,
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        // An engine that is gone has nothing to cancel.
        let _ = self.cancels.send(self.id);
    }
}

fn event_stream(receiver: mpsc::UnboundedReceiver<EventKind>, guard: CancelGuard) -> EventStream {
    let start = (Some(receiver), guard);
    let events = stream::unfold(start, |(receiver, guard)| async move {
        let mut receiver = receiver?;
        let Some(event) = receiver.recv().await else {
            let error =
                EngineError::Unavailable("the engine ended while the request ran".to_owned());
            return Some((Err(error), (None, guard)));
        };
        let last = matches!(event, EventKind::Finished { .. });
        let event = match event {
            EventKind::Finished { reason: FinishReason::EngineLost, .. } => {
                Err(EngineError::Unavailable("the engine lost its workers".to_owned()))
            }
            other => Ok(other),
        };
        Some((event, ((!last).then_some(receiver), guard)))
    });
    events.boxed()
}

impl EngineApi for EngineHandle {
    fn describe(&self) -> BoxFuture<'_, Result<EngineDescription, EngineError>> {
        async { self.current_description().map(|description| description.as_ref().clone()) }.boxed()
    }

    fn generate(&self, request: Request) -> BoxFuture<'_, Result<EventStream, EngineError>> {
        self.submit(request).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<EngineStatus, EngineError>> {
        async { Ok(self.shared.status.borrow().clone()) }.boxed()
    }
}
