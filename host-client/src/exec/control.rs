//! The control socket: sends window sizes, signals and pings, and receives pongs.

use std::{io, sync::Arc, time::Duration};

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use super::{TerminalSize, stream::Outgoing};
use crate::{
    endpoint::Endpoint,
    error::ClientError,
    protocol::exec::{ControlMessage, MAX_SIGNAL},
    ws,
};

/// Length of the queue of messages to be sent. A caller waits while it is full.
const QUEUE_DEPTH: usize = 16;

/// Pings in that time.
const PINGS: u32 = 3;

/// Time limit for sending one message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends window sizes and signals to a running command. Cheap to clone. May outlive the session; its
/// methods then fail.
///
/// # Cancel safety
///
/// When the future of a method is dropped, the message may or may not be sent.
#[derive(Debug, Clone)]
pub struct ExecControl {
    to: To,
    /// For errors.
    endpoint: Option<Endpoint>,
}

#[derive(Debug, Clone)]
enum To {
    /// To the task of a control socket.
    Task(mpsc::Sender<Command>),
    /// To the frames of one stream.
    Stream(Arc<Outgoing>),
}

#[derive(Debug)]
enum Command {
    Send(ControlMessage, oneshot::Sender<()>),
    Ping(oneshot::Sender<()>),
}

impl ExecControl {
    /// The same, of the agent at `endpoint`.
    pub(super) fn of(self, endpoint: &Endpoint) -> Self {
        Self {
            endpoint: Some(endpoint.clone()),
            ..self
        }
    }

    /// Resizes the command's terminal. Has no effect without a terminal.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the message may or may not be sent.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] when the command has ended or the agent is gone.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), ClientError> {
        let message = ControlMessage::WindowResize {
            width: size.columns,
            height: size.lines,
        };
        self.send("resizing the terminal", message).await
    }

    /// Sends a signal to the command, by its number. Returns when it was written to the connection;
    /// a [`ping`](Self::ping) after it confirms that the agent received it.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the signal may or may not be sent.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] with [`io::ErrorKind::InvalidInput`] when no signal has this number:
    /// they are 1 to 64 (Linux's `_NSIG`). [`ClientError::ConnectionLost`] when the command has
    /// ended or the agent is gone.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        if !(1..=MAX_SIGNAL).contains(&signal) {
            let reason = format!("no signal has the number {signal}");
            return Err(ClientError::invalid_argument("send a signal", reason));
        }
        let message = ControlMessage::Signal(signal);
        self.send("sending a signal", message).await
    }

    /// Waits for a pong of the agent, which confirms that it received everything sent before.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an answer that comes later is ignored.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] when the command has ended or the agent is gone.
    pub async fn ping(&self) -> Result<(), ClientError> {
        let is_answered = match &self.to {
            To::Task(queue) => submit(queue, Command::Ping).await,
            To::Stream(stream) => stream.ping().await,
        };
        self.sent("sending a ping", is_answered)
    }

    async fn send(&self, during: &'static str, message: ControlMessage) -> Result<(), ClientError> {
        let is_sent = match &self.to {
            To::Task(queue) => submit(queue, |done| Command::Send(message, done)).await,
            To::Stream(stream) => stream.control(message).await,
        };
        self.sent(during, is_sent)
    }

    fn sent(&self, during: &'static str, is_sent: bool) -> Result<(), ClientError> {
        if is_sent {
            return Ok(());
        }
        Err(ClientError::ConnectionLost {
            endpoint: self.endpoint.clone(),
            during,
            source: None,
        })
    }

    pub(super) const fn of_stream(stream: Arc<Outgoing>) -> Self {
        Self {
            to: To::Stream(stream),
            endpoint: None,
        }
    }
}

/// Has the task of a control socket do something. False if it has ended.
async fn submit(
    queue: &mpsc::Sender<Command>,
    make: impl FnOnce(oneshot::Sender<()>) -> Command,
) -> bool {
    let (done, outcome) = oneshot::channel();
    queue.send(make(done)).await.is_ok() && outcome.await.is_ok()
}

/// A handle and the receiver of its commands.
pub(super) fn queue() -> (ExecControl, Commands) {
    let (queue, commands) = mpsc::channel(QUEUE_DEPTH);
    let control = ExecControl {
        to: To::Task(queue),
        endpoint: None,
    };
    (control, Commands(commands))
}

/// Receives the commands of all handles.
#[derive(Debug)]
pub(super) struct Commands(mpsc::Receiver<Command>);

/// Runs the control socket until the agent closes it, which it does when the command has ended.
/// Cancels `lost` if the agent sends nothing for `silence`.
pub(super) async fn run_control<S>(
    mut socket: S,
    mut commands: Commands,
    silence: Duration,
    lost: CancellationToken,
) where
    S: Stream<Item = Result<Message, WsError>> + Sink<Message, Error = WsError> + Unpin,
{
    let mut pings = interval(silence / PINGS);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_received = Instant::now();
    let mut waiting = Vec::new();
    let mut open = true;
    loop {
        let sent = tokio::select! {
            command = commands.0.recv(), if open => match command {
                None => {
                    open = false;
                    Ok(())
                }
                Some(Command::Ping(done)) => {
                    waiting.push(done);
                    send(&mut socket, ws::ping(), silence).await
                }
                Some(Command::Send(message, done)) => match text(message) {
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
                    last_received = Instant::now();
                    if message.is_pong() {
                        waiting.drain(..).for_each(|done: oneshot::Sender<()>| {
                            let _ = done.send(());
                        });
                    }
                    Ok(())
                }
            },
            _ = pings.tick() => {
                if last_received.elapsed() >= silence {
                    lost.cancel();
                    return;
                }
                send(&mut socket, ws::ping(), silence).await
            }
        };
        if sent.is_err() {
            // A socket that cannot be written to may still be closed properly. Only silence means
            // that the agent is lost.
            drain(
                &mut socket,
                silence.saturating_sub(last_received.elapsed()),
                &lost,
            )
            .await;
            return;
        }
    }
}

/// Reads until the socket closes, after writing failed. Cancels `lost` if that takes longer than
/// `left`.
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
    use crate::http::http2::SILENCE_TIMEOUT;

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
        let (control, commands) = queue();
        let mut last_received = Vec::new();
        let agent = async {
            // Reading answers the pings.
            while let Some(Ok(message)) = theirs.next().await {
                if let Message::Text(text) = message {
                    last_received.push(text.as_str().to_owned());
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
            () = run_control(ours, commands, SILENCE_TIMEOUT, CancellationToken::new()) => panic!("the agent stays"),
        }
        assert_eq!(
            last_received,
            [r#"{"command":"signal","args":null,"signal":15}"#]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_falls_silent_is_lost() {
        let (ours, _theirs) = sockets().await;
        let (_control, commands) = queue();
        let lost = CancellationToken::new();
        run_control(ours, commands, SILENCE_TIMEOUT, lost.clone()).await;
        assert!(lost.is_cancelled());
    }

    #[tokio::test]
    async fn a_socket_the_agent_closes_is_not_a_lost_agent() {
        let (ours, theirs) = sockets().await;
        let (control, commands) = queue();
        let lost = CancellationToken::new();
        drop(theirs);
        run_control(ours, commands, SILENCE_TIMEOUT, lost.clone()).await;
        assert!(!lost.is_cancelled());
        control.signal(2).await.unwrap_err();
    }

    #[tokio::test]
    async fn an_invalid_signal_number_is_refused() {
        let (control, _orders) = queue();
        for signal in [i32::MIN, -1, 0, 65] {
            let refused = control.signal(signal).await.unwrap_err();
            assert!(matches!(refused, ClientError::Local { .. }), "{refused:?}");
        }
    }
}
