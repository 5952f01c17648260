//! The running operations, and those that ended recently.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::exec::Secret;
use vsock_agent_protocol::operation::{Operation, OperationId, OperationStatus};

use super::{OperationError, secret};
use crate::{defaults, http::ws::WebSocket, shutdown::Shutdown, system::clock};

/// The table of all operations. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry(Arc<Inner>);

struct Inner {
    /// Not locked across an `.await`.
    table: Mutex<Table>,
    /// Called with each new state of each operation.
    on_change: Box<dyn Fn(&Operation) + Send + Sync>,
    shutdown: Shutdown,
}

#[derive(Debug, Default)]
struct Table {
    live: HashMap<OperationId, Arc<Entry>>,
    /// The final states of ended operations. As JSON, which takes less memory.
    ended: HashMap<OperationId, Box<str>>,
    /// The ids of ended operations and the times of their ends, oldest first.
    order: VecDeque<(Instant, OperationId)>,
}

#[derive(Debug)]
struct Entry {
    /// The current state.
    view: watch::Sender<Operation>,
    /// The names and secrets of the websockets that are not connected yet.
    sockets: Mutex<Vec<(String, Secret)>>,
    joined: mpsc::Sender<Joined>,
    cancel: CancellationToken,
}

/// A connected websocket and its name.
pub(crate) type Joined = (String, WebSocket);

/// Called with the final state of an operation, once it can be requested.
pub(crate) type OnEnd = Box<dyn FnOnce(&Operation) + Send>;

/// The parameters of a new operation.
pub(crate) struct New {
    /// LXD's class, such as `websocket`.
    pub(crate) class: &'static str,
    /// A description for people.
    pub(crate) description: &'static str,
    /// The metadata while it runs. Must not contain a secret.
    pub(crate) metadata: serde_json::Value,
    /// The names and secrets of its websockets.
    pub(crate) sockets: Vec<(String, Secret)>,
    /// Must not block.
    pub(crate) on_end: Option<OnEnd>,
}

/// How an operation ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// A final status.
    pub(crate) status: OperationStatus,
    /// The final metadata. If null, those of the start are kept.
    pub(crate) metadata: serde_json::Value,
    /// The error text of a failure, or empty.
    pub(crate) error: String,
}

impl Registry {
    /// An empty registry. `on_change` is called with each new state, and must not block.
    pub(crate) fn new(
        shutdown: Shutdown,
        on_change: impl Fn(&Operation) + Send + Sync + 'static,
    ) -> Self {
        let table = Mutex::default();
        Self(Arc::new(Inner {
            table,
            on_change: Box::new(on_change),
            shutdown,
        }))
    }

    /// Creates an operation and runs `work` for it, in a task that the registry owns.
    ///
    /// # Errors
    ///
    /// [`OperationError::Full`] at [`defaults::MAX_SESSIONS`], or without a random id.
    pub(crate) fn start<F, W>(&self, new: New, work: F) -> Result<Operation, OperationError>
    where
        F: FnOnce(Handle) -> W,
        W: Future<Output = Outcome> + Send + 'static,
    {
        let id = secret::random_id().map_err(|_| OperationError::Full)?;
        let mut operation = Operation::new(id, new.class, new.description, clock::now());
        operation.metadata = new.metadata;
        let (joined, sockets) = mpsc::channel(new.sockets.len().max(1));
        let cancel = CancellationToken::new();
        let stopping = self.0.shutdown.child_token();
        let entry = Arc::new(Entry {
            view: watch::Sender::new(operation.clone()),
            sockets: Mutex::new(new.sockets),
            joined,
            cancel: cancel.clone(),
        });
        {
            let mut table = self.table();
            if table.live.len() >= defaults::MAX_SESSIONS {
                return Err(OperationError::Full);
            }
            table.live.insert(id, Arc::clone(&entry));
        }
        (self.0.on_change)(&operation);
        let ending = Ending {
            registry: self.clone(),
            entry,
            outcome: None,
            on_end: new.on_end,
        };
        let work = work(Handle {
            id,
            sockets,
            cancel,
            stopping,
        });
        self.0.shutdown.spawn(async move {
            ending.finish(work.await);
        });
        Ok(operation)
    }

    /// The state of an operation.
    ///
    /// # Errors
    ///
    /// [`OperationError::Unknown`].
    pub(crate) fn get(&self, id: OperationId) -> Result<Operation, OperationError> {
        let mut table = self.table();
        table.forget_old();
        if let Some(entry) = table.live.get(&id) {
            return Ok(entry.view.borrow().clone());
        }
        let ended = table
            .ended
            .get(&id)
            .and_then(|text| serde_json::from_str(text).ok());
        ended.ok_or(OperationError::Unknown(id))
    }

    /// The states of all operations, in arbitrary order.
    pub(crate) fn list(&self) -> Vec<Operation> {
        let mut table = self.table();
        table.forget_old();
        let live = table.live.values().map(|entry| entry.view.borrow().clone());
        let ended = table
            .ended
            .values()
            .filter_map(|text| serde_json::from_str(text).ok());
        live.chain(ended).collect()
    }

    /// The state of an operation at its end, or after `limit`.
    ///
    /// # Errors
    ///
    /// [`OperationError::Unknown`].
    pub(crate) async fn wait(
        &self,
        id: OperationId,
        limit: Option<Duration>,
    ) -> Result<Operation, OperationError> {
        let Some(entry) = self.live(id) else {
            return self.get(id);
        };
        let mut view = entry.view.subscribe();
        let ended = view.wait_for(Operation::is_final);
        // The sender is not dropped: `entry` holds it.
        match limit {
            None => drop(ended.await),
            Some(limit) => drop(timeout(limit, ended).await),
        }
        let operation = view.borrow().clone();
        Ok(operation)
    }

    /// Cancels an operation.
    ///
    /// # Errors
    ///
    /// [`OperationError::Unknown`] or [`OperationError::Ended`].
    pub(crate) fn cancel(&self, id: OperationId) -> Result<(), OperationError> {
        let Some(entry) = self.live(id) else {
            return self.get(id).and(Err(OperationError::Ended));
        };
        let mut cancelling = None;
        entry.view.send_if_modified(|view| {
            if view.is_final() {
                return false;
            }
            view.set_status(OperationStatus::Cancelling);
            cancelling = Some(view.clone());
            true
        });
        (self.0.on_change)(&cancelling.ok_or(OperationError::Ended)?);
        entry.cancel.cancel();
        Ok(())
    }

    /// Consumes the secret of a websocket. The returned ticket takes the websocket once it is open.
    ///
    /// # Errors
    ///
    /// [`OperationError::Unknown`], [`OperationError::Ended`] or [`OperationError::WrongSecret`].
    pub(crate) fn join(&self, id: OperationId, text: &str) -> Result<Ticket, OperationError> {
        let Some(entry) = self.live(id) else {
            return self.get(id).and(Err(OperationError::Ended));
        };
        let mut sockets = entry.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        // All secrets are compared, so that the time is independent of the match.
        let found = sockets
            .iter()
            .enumerate()
            .fold(None, |found, (index, (_, secret))| {
                if secret::is_secret(secret, text) {
                    Some(index)
                } else {
                    found
                }
            });
        let (name, _) = sockets.swap_remove(found.ok_or(OperationError::WrongSecret)?);
        Ok(Ticket {
            name,
            joined: entry.joined.clone(),
        })
    }

    fn live(&self, id: OperationId) -> Option<Arc<Entry>> {
        self.table().live.get(&id).cloned()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Moves an operation from `live` to `ended`.
    fn end(&mut self, operation: &Operation) {
        self.live.remove(&operation.id);
        // Fails only for a map whose keys are not strings; there is none.
        let write = |operation| serde_json::to_string(operation).unwrap_or_default();
        let mut text = write(operation);
        if text.len() > defaults::MAX_ENDED_BYTES {
            let mut short = operation.clone();
            short.metadata = serde_json::Value::Null;
            text = write(&short);
        }
        self.ended.insert(operation.id, text.into_boxed_str());
        self.order.push_back((Instant::now(), operation.id));
        self.forget_old();
    }

    /// Removes operations that ended [`defaults::RETENTION`] ago, and the oldest ones above the limit.
    fn forget_old(&mut self) {
        while let Some((ended, id)) = self.order.front() {
            let keep = ended.elapsed() < defaults::RETENTION
                && self.order.len() <= defaults::MAX_ENDED_OPERATIONS;
            if keep {
                break;
            }
            self.ended.remove(id);
            self.order.pop_front();
        }
    }
}

/// The permission to connect one websocket to an operation.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) name: String,
    joined: mpsc::Sender<Joined>,
}

impl Ticket {
    /// Sends the websocket to the task of the operation. Closes it if the operation has ended.
    pub(crate) fn hand_over(self, socket: WebSocket) {
        // The channel has capacity for all secrets.
        let _ = self.joined.try_send((self.name, socket));
    }
}

/// What the task of an operation needs.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) id: OperationId,
    /// Receives the websockets as they are connected.
    pub(crate) sockets: mpsc::Receiver<Joined>,
    /// Cancelled by a client.
    pub(crate) cancel: CancellationToken,
    /// Cancelled when the agent stops.
    pub(crate) stopping: CancellationToken,
}

/// Ends the operation on drop, also after a panic.
struct Ending {
    registry: Registry,
    entry: Arc<Entry>,
    outcome: Option<Outcome>,
    on_end: Option<OnEnd>,
}

impl Ending {
    fn finish(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Outcome {
            status: OperationStatus::Failure,
            metadata: serde_json::Value::Null,
            error: "the agent was stopped or failed".to_owned(),
        });
        self.entry.view.send_modify(|view| {
            view.set_status(outcome.status);
            view.updated_at = clock::now();
            view.may_cancel = false;
            view.err = outcome.error;
            if !outcome.metadata.is_null() {
                view.metadata = outcome.metadata;
            }
        });
        let view = self.entry.view.borrow().clone();
        self.registry.table().end(&view);
        (self.registry.0.on_change)(&view);
        if let Some(on_end) = self.on_end.take() {
            on_end(&view);
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::new(Shutdown::default(), |_| {})
    }

    fn new(sockets: Vec<(String, Secret)>) -> New {
        New {
            class: "websocket",
            description: "test",
            metadata: serde_json::json!({ "command": [] }),
            sockets,
            on_end: None,
        }
    }

    fn success() -> Outcome {
        Outcome {
            status: OperationStatus::Success,
            metadata: serde_json::json!({ "return": 0 }),
            error: String::new(),
        }
    }

    #[tokio::test]
    async fn an_ended_operation_is_kept_with_its_final_metadata() {
        let registry = registry();
        let id = registry
            .start(new(vec![]), |_| async { success() })
            .unwrap()
            .id;
        let end = registry.wait(id, None).await.unwrap();
        assert_eq!(end.status_code, 200);
        assert_eq!(end.metadata, serde_json::json!({ "return": 0 }));
        assert_eq!(registry.get(id).unwrap(), end);
    }

    #[tokio::test]
    async fn large_metadata_of_an_ended_operation_are_dropped() {
        let registry = registry();
        let large = New {
            metadata: serde_json::json!({ "command": ["x".repeat(defaults::MAX_ENDED_BYTES)] }),
            ..new(vec![])
        };
        let without_result = Outcome {
            metadata: serde_json::Value::Null,
            ..success()
        };
        let id = registry
            .start(large, |_| async { without_result })
            .unwrap()
            .id;
        registry.wait(id, None).await.unwrap();
        let kept = registry.get(id).unwrap();
        assert_eq!(kept.metadata, serde_json::Value::Null);
        assert_eq!(kept.status_code, 200);
    }

    #[tokio::test]
    async fn an_operation_whose_task_panics_fails() {
        let registry = registry();
        let id = registry
            .start(new(vec![]), |_| async { panic!("on purpose") })
            .unwrap()
            .id;
        assert_eq!(registry.wait(id, None).await.unwrap().status_code, 400);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_operation_is_removed_after_the_retention() {
        let registry = registry();
        let id = registry
            .start(new(vec![]), |_| async { success() })
            .unwrap()
            .id;
        registry.wait(id, None).await.unwrap();
        tokio::time::advance(defaults::RETENTION).await;
        assert_eq!(registry.get(id), Err(OperationError::Unknown(id)));
    }

    #[tokio::test]
    async fn the_task_of_a_cancelled_operation_is_notified() {
        let registry = registry();
        let id = registry
            .start(new(vec![]), |handle| async move {
                handle.cancel.cancelled().await;
                Outcome {
                    status: OperationStatus::Cancelled,
                    ..success()
                }
            })
            .unwrap()
            .id;
        registry.cancel(id).unwrap();
        assert_eq!(registry.wait(id, None).await.unwrap().status_code, 401);
        assert_eq!(registry.cancel(id), Err(OperationError::Ended));
    }

    #[tokio::test]
    async fn a_secret_connects_one_websocket() {
        let registry = registry();
        let secret = secret::random_secret().unwrap();
        let sockets = vec![("0".to_owned(), secret.clone())];
        let work = |handle: Handle| async move {
            handle.cancel.cancelled().await;
            success()
        };
        let id = registry.start(new(sockets), work).unwrap().id;
        assert_eq!(
            registry.join(id, "guess").unwrap_err(),
            OperationError::WrongSecret
        );
        assert_eq!(registry.join(id, secret.as_str()).unwrap().name, "0");
        assert_eq!(
            registry.join(id, secret.as_str()).unwrap_err(),
            OperationError::WrongSecret
        );
    }

    #[tokio::test]
    async fn operations_above_the_limit_are_refused() {
        let registry = registry();
        for _ in 0..defaults::MAX_SESSIONS {
            registry
                .start(new(vec![]), |_| std::future::pending())
                .unwrap();
        }
        let error = registry
            .start(new(vec![]), |_| std::future::pending())
            .unwrap_err();
        assert_eq!(error, OperationError::Full);
    }
}
