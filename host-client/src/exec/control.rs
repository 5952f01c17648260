//! The control socket: sizes and signals go out, signs of life come back.

use std::{io, time::Duration};

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use super::TerminalSize;
use crate::{
    error::ClientError,
    protocol::exec::{ControlMessage, MAX_SIGNAL},
    ws,
};

/// Messages waiting to be sent. A person cannot fill it; a program that does waits.
const QUEUE_DEPTH: usize = 16;

/// An agent that has not answered for this long is gone, unless the caller says otherwise.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);

/// Pings in that time.
const PINGS: u32 = 3;

/// How long one message may take to be handed to the socket.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends sizes and signals to a running command. Cheap to clone; outlives the session harmlessly.
#[derive(Debug, Clone)]
pub struct ExecControl {
    queue: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Send(ControlMessage, oneshot::Sender<()>),
    Ping(oneshot::Sender<()>),
}

impl ExecControl {
    /// Tells the command's terminal its new size. Without a terminal it does nothing.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] when the command has ended or the agent is gone.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), ClientError> {
        let message = ControlMessage::WindowResize {
            width: size.columns,
            height: size.lines,
        };
        self.order("resizing the terminal", |done| Order::Send(message, done))
            .await
    }

    /// Sends the command a signal, by its number. It was handed to the connection when this
    /// returns; [`ping`](Self::ping) tells whether the agent has got it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] with [`io::ErrorKind::InvalidInput`] when no signal has this number:
    /// they are 1 to 64 (Linux's `_NSIG`). [`ClientError::ConnectionLost`] when the command has
    /// ended or the agent is gone.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        if !(1..=MAX_SIGNAL).contains(&signal) {
            let reason = format!("no signal has the number {signal}");
            return Err(ClientError::Local {
                action: "send a signal",
                source: io::Error::new(io::ErrorKind::InvalidInput, reason),
            });
        }
        let message = ControlMessage::Signal(signal);
        self.order("sending a signal", |done| Order::Send(message, done))
            .await
    }

    /// Waits for a sign of life from the agent, given after everything sent before.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] when the command has ended or the agent is gone.
    pub async fn ping(&self) -> Result<(), ClientError> {
        self.order("asking for a sign of life", Order::Ping).await
    }

    async fn order(
        &self,
        during: &'static str,
        make: impl FnOnce(oneshot::Sender<()>) -> Order,
    ) -> Result<(), ClientError> {
        let lost = || ClientError::ConnectionLost {
            during,
            source: None,
        };
        let (done, outcome) = oneshot::channel();
        self.queue.send(make(done)).await.map_err(|_| lost())?;
        outcome.await.map_err(|_| lost())
    }
}

/// A handle, and the other end of its queue.
pub(super) fn queue() -> (ExecControl, Orders) {
    let (queue, orders) = mpsc::channel(QUEUE_DEPTH);
    (ExecControl { queue }, Orders(orders))
}

/// What the handles asked for.
#[derive(Debug)]
pub(super) struct Orders(mpsc::Receiver<Order>);

/// Serves the control socket until it closes, which the agent does when the command has ended.
/// Cancels `lost` if the agent says nothing for `silence`.
pub(super) async fn steer<S>(
    mut socket: S,
    mut orders: Orders,
    silence: Duration,
    lost: CancellationToken,
) where
    S: Stream<Item = Result<Message, WsError>> + Sink<Message, Error = WsError> + Unpin,
{
    let mut pings = interval(silence / PINGS);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut waiting = Vec::new();
    let mut open = true;
    loop {
        let sent = tokio::select! {
            order = orders.0.recv(), if open => match order {
                None => {
                    open = false;
                    Ok(())
                }
                Some(Order::Ping(done)) => {
                    waiting.push(done);
                    send(&mut socket, ws::ping(), silence).await
                }
                Some(Order::Send(message, done)) => match text(message) {
                    None => Ok(()),
                    Some(text) => send(&mut socket, text, silence).await.map(|()| {
                        // The caller may have stopped waiting.
                        let _ = done.send(());
                    }),
                },
            },
            message = socket.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(message)) => {
                    heard = Instant::now();
                    if message.is_pong() {
                        waiting.drain(..).for_each(|done: oneshot::Sender<()>| {
                            let _ = done.send(());
                        });
                    }
                    Ok(())
                }
            },
            _ = pings.tick() => {
                if heard.elapsed() >= silence {
                    lost.cancel();
                    return;
                }
                send(&mut socket, ws::ping(), silence).await
            }
        };
        if sent.is_err() {
            // A socket that takes nothing may still be closing in good order: that the agent is
            // silent is for the pings to say.
            drain(&mut socket, silence.saturating_sub(heard.elapsed()), &lost).await;
            return;
        }
    }
}

/// Reads on after the socket stopped taking anything, for what is `left` of the agent's time.
async fn drain<S>(socket: &mut S, left: Duration, lost: &CancellationToken)
where
    S: Stream<Item = Result<Message, WsError>> + Unpin,
{
    let closing = async { while let Some(Ok(_)) = socket.next().await {} };
    if timeout(left, closing).await.is_err() {
        lost.cancel();
    }
}

async fn send<S>(socket: &mut S, message: Message, silence: Duration) -> io::Result<()>
where
    S: Sink<Message, Error = WsError> + Unpin,
{
    timeout(SEND_TIMEOUT.min(silence), socket.send(message))
        .await?
        .map_err(io::Error::other)
}

fn text(message: ControlMessage) -> Option<Message> {
    serde_json::to_string(&message).ok().map(Message::text)
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

    use super::*;

    async fn sockets() -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        (
            WebSocketStream::from_raw_socket(near, Role::Client, None).await,
            WebSocketStream::from_raw_socket(far, Role::Server, None).await,
        )
    }

    #[tokio::test]
    async fn a_signal_is_sent_as_text_and_a_ping_is_answered_after_it() {
        let (ours, mut theirs) = sockets().await;
        let (control, orders) = queue();
        let mut heard = Vec::new();
        let agent = async {
            // Reading answers the pings.
            while let Some(Ok(message)) = theirs.next().await {
                if let Message::Text(text) = message {
                    heard.push(text.as_str().to_owned());
                }
            }
        };
        let user = async {
            control.signal(15).await.unwrap();
            control.ping().await.unwrap();
        };
        tokio::select! {
            () = user => {}
            () = agent => panic!("the client stays"),
            () = steer(ours, orders, SILENCE_TIMEOUT, CancellationToken::new()) => panic!("the agent stays"),
        }
        assert_eq!(heard, [r#"{"command":"signal","args":null,"signal":15}"#]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_falls_silent_is_lost() {
        let (ours, _theirs) = sockets().await;
        let (_control, orders) = queue();
        let lost = CancellationToken::new();
        steer(ours, orders, SILENCE_TIMEOUT, lost.clone()).await;
        assert!(lost.is_cancelled());
    }

    #[tokio::test]
    async fn a_socket_the_agent_closes_is_not_a_lost_agent() {
        let (ours, theirs) = sockets().await;
        let (control, orders) = queue();
        let lost = CancellationToken::new();
        drop(theirs);
        steer(ours, orders, SILENCE_TIMEOUT, lost.clone()).await;
        assert!(!lost.is_cancelled());
        control.signal(2).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_number_that_is_no_signal_is_refused() {
        let (control, _orders) = queue();
        for signal in [i32::MIN, -1, 0, 65] {
            let refused = control.signal(signal).await.unwrap_err();
            assert!(matches!(refused, ClientError::Local { .. }), "{refused:?}");
        }
    }
}
