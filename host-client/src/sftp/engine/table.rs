//! The callers that wait for replies.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Credit, Ending};
use crate::{endpoint::Endpoint, error::ClientError, protocol::sftp::Reply};

/// The waiting callers, by id of their requests.
#[derive(Debug, Default)]
pub(super) struct Table {
    waiting: Mutex<Waiting>,
    /// For errors; set when the session has started.
    pub(super) endpoint: OnceLock<Endpoint>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u32,
    replies: HashMap<u32, Waiter>,
    /// Set when the connection has ended.
    over: Option<Ending>,
}

/// A caller that waits for a reply. Permit and credit go back when the reply has arrived, not when the
/// caller is dropped: the request is in flight either way.
#[derive(Debug)]
struct Waiter {
    sender: oneshot::Sender<Answer>,
    permit: Option<OwnedSemaphorePermit>,
    credit: Option<Credit>,
}

/// A reply, and the bytes of the window that its data take for as long as they are kept.
type Answer = (Reply, Option<Credit>);

/// A reply that is due.
#[derive(Debug)]
pub(in crate::sftp) struct PendingReply {
    take: oneshot::Receiver<Answer>,
    /// What was received and not taken yet: an answer, or that none will come.
    here: Option<Option<Answer>>,
    table: Arc<Table>,
}

impl PendingReply {
    /// Waits for it. If this is dropped, the reply is discarded when it arrives.
    pub(in crate::sftp) async fn reply(self) -> Result<Reply, ClientError> {
        Ok(self.answer().await?.0)
    }

    /// Waits for it and reads it.
    pub(in crate::sftp) async fn read<T>(
        self,
        read: impl FnOnce(Reply) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let table = Arc::clone(&self.table);
        read(self.reply().await?).map_err(|error| table.at(error))
    }

    /// Waits for it; the credit is to be kept as long as its data.
    pub(in crate::sftp) async fn answer(mut self) -> Result<Answer, ClientError> {
        let answer = match self.here.take() {
            Some(here) => here,
            None => self.take.await.ok(),
        };
        answer.ok_or_else(|| self.table.at(self.table.ending().error()))
    }

    /// Whether the answer has arrived.
    pub(in crate::sftp) fn is_here(&mut self) -> bool {
        if self.here.is_none() {
            self.here = match self.take.try_recv() {
                Ok(answer) => Some(Some(answer)),
                Err(oneshot::error::TryRecvError::Closed) => Some(None),
                Err(oneshot::error::TryRecvError::Empty) => None,
            };
        }
        self.here.is_some()
    }

    /// Waits until it has.
    pub(in crate::sftp) async fn arrived(&mut self) {
        if !self.is_here() {
            self.here = Some((&mut self.take).await.ok());
        }
    }
}

impl Table {
    /// Adds to an error which agent it is of.
    pub(super) fn at(&self, error: ClientError) -> ClientError {
        match self.endpoint.get() {
            Some(endpoint) => error.at(endpoint),
            None => error,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh id, and the reply to it that is due.
    pub(super) fn expect(
        self: &Arc<Self>,
        permit: Option<OwnedSemaphorePermit>,
        credit: Option<Credit>,
    ) -> Result<(u32, PendingReply), ClientError> {
        let mut waiting = self.lock();
        if let Some(ending) = waiting.over.clone() {
            drop(waiting);
            return Err(self.at(ending.error()));
        }
        let mut id = waiting.last_id.wrapping_add(1);
        // Ids repeat after 2³² requests; an old one may be in flight.
        while waiting.replies.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        waiting.last_id = id;
        let (sender, take) = oneshot::channel();
        let waiter = Waiter {
            sender,
            permit,
            credit,
        };
        waiting.replies.insert(id, waiter);
        let pending = PendingReply {
            take,
            here: None,
            table: Arc::clone(self),
        };
        Ok((id, pending))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().over.is_some()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lock().replies.is_empty()
    }

    /// Gives a reply to its caller; false if there is none.
    pub(super) fn answer(&self, id: u32, reply: Reply) -> bool {
        let waiter = self.lock().replies.remove(&id);
        let Some(waiter) = waiter else {
            return false;
        };
        drop(waiter.permit);
        let credit = match reply {
            Reply::Data { .. } => waiter.credit,
            // Frees its memory.
            _ => None,
        };
        // The caller may have stopped waiting.
        let _ = waiter.sender.send((reply, credit));
        true
    }

    /// Ends all waiting. The first ending is the cause, later ones follow from it.
    pub(super) fn end(&self, ending: Ending) {
        let waiters = {
            let mut waiting = self.lock();
            waiting.over.get_or_insert(ending);
            std::mem::take(&mut waiting.replies)
        };
        drop(waiters);
    }

    pub(super) fn ending(&self) -> Ending {
        let over = self.lock().over.clone();
        over.unwrap_or_else(|| Ending::Lost("the session was closed".to_owned()))
    }
}
