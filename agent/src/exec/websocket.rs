//! The websockets of a command as the ends of its streams: a binary message is data, an empty text message
//! the end.

use bytes::BytesMut;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio_tungstenite::tungstenite::{
    Error as WsError, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::pump::{ClientWatch, Gone, InputSource, Loss, OutputSink, Received};
use crate::http::ws::WebSocket;

/// The sending direction.
#[derive(Debug)]
pub(super) struct MessageSink<W>(pub(super) W);

impl<W: Sink<Message, Error = WsError> + Unpin + Send> OutputSink for MessageSink<W> {
    const HEAD_BYTES: usize = 0;

    async fn send(&mut self, data: BytesMut) -> Result<(), Gone> {
        let message = Message::binary(data.freeze());
        self.0.send(message).await.map_err(|_| Gone)
    }

    async fn end(&mut self) {
        // Fails if the client has disconnected.
        let _ = self.0.send(Message::text("")).await;
    }
}

/// The receiving direction.
#[derive(Debug)]
pub(super) struct MessageSource<R>(pub(super) R);

/// One direction of a terminal's socket, whose other one cannot be closed alone.
impl<R> InputSource for MessageSource<R>
where
    R: Stream<Item = Result<Message, WsError>> + Unpin + Send,
{
    async fn next(&mut self) -> Received {
        next(&mut self.0).await
    }

    async fn refuse_more(&mut self) {}
}

impl InputSource for WebSocket {
    async fn next(&mut self) -> Received {
        next(self).await
    }

    async fn refuse_more(&mut self) {
        // Fails if the client has disconnected.
        let _ = self.close(None).await;
    }
}

async fn next<R>(socket: &mut R) -> Received
where
    R: Stream<Item = Result<Message, WsError>> + Unpin,
{
    loop {
        return match socket.next().await {
            Some(Ok(Message::Binary(data))) => Received::Data(data),
            Some(Ok(Message::Text(_))) => Received::End,
            Some(Ok(Message::Close(close))) => match close {
                Some(CloseFrame { code, reason }) if !is_orderly(code) => {
                    Received::Lost(Loss::Closed(code, reason))
                }
                _ => Received::End,
            },
            Some(Err(error)) => Received::Lost(Loss::Broken(error)),
            None => Received::Lost(Loss::Broken(WsError::ConnectionClosed)),
            // Pings are answered by tungstenite.
            Some(Ok(_)) => continue,
        };
    }
}

impl<R> ClientWatch for MessageSource<R>
where
    R: Stream<Item = Result<Message, WsError>> + Unpin + Send,
{
    /// Discards the client's messages.
    async fn left(&mut self) {
        while let Some(Ok(message)) = self.0.next().await {
            if message.is_close() {
                return;
            }
        }
    }
}

/// Whether a close code is no error: 1000, 1001 or none (RFC 6455, section 7.4.1).
fn is_orderly(code: CloseCode) -> bool {
    matches!(
        code,
        CloseCode::Normal | CloseCode::Away | CloseCode::Status
    )
}
