//! Waits for the end of an operation: by long poll, or by events from agents without long poll.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use crate::{
    agent::Agent,
    error::ClientError,
    http::{Call, metadata},
    protocol::{
        event::{self, Event},
        operation::{Operation, OperationId},
        path,
    },
    ws::Socket,
};

/// Length of one long poll. A lost agent is noticed at the latest after this time.
const POLL_TIME: Duration = Duration::from_secs(30);

/// Time between two polls of an operation without an event: less than the 5 s for which LXD's agent
/// keeps an operation that ended.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How to wait for the end of an operation.
#[derive(Debug)]
pub(crate) enum Watch {
    /// `GET …/wait`.
    LongPoll,
    /// Events, on a socket opened before the operation was created.
    Events(Box<Socket>),
}

/// Waits for the end of operation `id`.
pub(crate) async fn end(
    agent: &Agent,
    id: OperationId,
    watch: Watch,
) -> Result<Operation, ClientError> {
    match watch {
        Watch::LongPoll => end_by_long_poll(agent, id).await,
        Watch::Events(socket) => end_by_events(agent, id, *socket).await,
    }
}

async fn end_by_long_poll(agent: &Agent, id: OperationId) -> Result<Operation, ClientError> {
    loop {
        match poll(agent, id).await {
            Ok(operation) if operation.is_final() => return Ok(operation),
            Ok(_) => {}
            // LXD's agent answers the wait with an error after the poll's time, and if the operation
            // failed. `GET` of the operation distinguishes them.
            Err(error) => debug!(%error, "the long poll ended without the operation"),
        }
        match look(agent, id).await? {
            operation if operation.is_final() => return Ok(operation),
            _ => sleep(LOOK_INTERVAL).await,
        }
    }
}

async fn end_by_events(
    agent: &Agent,
    id: OperationId,
    mut socket: Socket,
) -> Result<Operation, ClientError> {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listening = true;
    loop {
        tokio::select! {
            message = socket.next(), if listening => match message {
                Some(Ok(Message::Text(text))) => {
                    if let Some(operation) = final_state(text.as_str(), id) {
                        return Ok(operation);
                    }
                }
                Some(Ok(_)) => {}
                // An agent drops slow listeners. Polling is enough.
                Some(Err(_)) | None => listening = false,
            },
            _ = looks.tick() => {
                let operation = look(agent, id).await?;
                if operation.is_final() {
                    return Ok(operation);
                }
            }
        }
    }
}

/// The state in an event, if it is the final one of `id`. Events may arrive out of order, so others
/// are ignored.
fn final_state(text: &str, id: OperationId) -> Option<Operation> {
    let event: Event = serde_json::from_str(text).ok()?;
    if event.kind != event::OPERATION {
        return None;
    }
    let operation: Operation = serde_json::from_value(event.metadata).ok()?;
    (operation.id == id && operation.is_final()).then_some(operation)
}

/// The action in errors.
const DURING: &str = "waiting for the command to end";

/// Waits for the end, for the length of one poll.
async fn poll(agent: &Agent, id: OperationId) -> Result<Operation, ClientError> {
    let path = path::operation_wait(id, Some(POLL_TIME));
    let call = Call::get(path, DURING).with_extra_time(POLL_TIME);
    metadata(agent.http.call_once(call).await?, "the operation")
}

/// The current state of an operation. As for the poll, there is one attempt to connect: an agent that
/// restarted does not know the operation.
async fn look(agent: &Agent, id: OperationId) -> Result<Operation, ClientError> {
    let call = Call::get(path::operation(id), DURING);
    match agent.http.call_once(call).await {
        Ok(envelope) => metadata(envelope, "the operation"),
        // LXD's agent returns 500 for an unknown operation.
        Err(ClientError::Agent {
            status: 404 | 500,
            text,
            ..
        }) => Err(ClientError::lost(
            DURING,
            format!("the agent no longer knows the command: {text}"),
        )),
        Err(error @ ClientError::Connect { .. }) => Err(ClientError::lost(DURING, error)),
        Err(error) => Err(error),
    }
}

/// Flattens the answer to a list of operations: by state, or null when there are none.
pub(crate) fn flatten(listed: Value) -> Result<Vec<Operation>, ClientError> {
    let by_state: Option<std::collections::BTreeMap<String, Option<Vec<Operation>>>> =
        serde_json::from_value(listed).map_err(|error| {
            ClientError::protocol_because("the list of operations is not one", error)
        })?;
    Ok(by_state
        .unwrap_or_default()
        .into_values()
        .flatten()
        .flatten()
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01234567-89ab-4cde-8f01-23456789abcd";

    fn event(id: &str, code: u16) -> String {
        format!(
            r#"{{"type":"operation","timestamp":"","metadata":{{"id":"{id}","status_code":{code},"metadata":{{"return":3}}}}}}"#
        )
    }

    #[test]
    fn only_the_final_event_of_this_operation_is_its_end() {
        let id: OperationId = ID.parse().unwrap();
        assert!(final_state(&event(ID, 200), id).is_some());
        assert!(final_state(&event(ID, 103), id).is_none());
        let other = "ffffffff-89ab-4cde-8f01-23456789abcd";
        assert!(final_state(&event(other, 200), id).is_none());
        assert!(final_state("nonsense", id).is_none());
    }

    #[test]
    fn a_list_is_flattened_and_may_be_null() {
        assert_eq!(flatten(Value::Null).unwrap(), []);
        let listed = serde_json::json!({
            "running": [{"id": ID, "status_code": 103}],
            "success": null,
        });
        assert_eq!(flatten(listed).unwrap().len(), 1);
        flatten(Value::from(3)).unwrap_err();
    }
}
